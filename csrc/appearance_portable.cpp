#define INFOSEG_ISA portable
#include "appearance_kernel.h"
