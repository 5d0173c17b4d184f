#define INFOSEG_ISA avx512
#include "appearance_kernel.h"
