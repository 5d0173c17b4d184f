#define INFOSEG_ISA portable
#include "similarity_kernel.h"
