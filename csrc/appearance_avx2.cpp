#define INFOSEG_ISA avx2
#include "appearance_kernel.h"
