#define INFOSEG_ISA avx512
#include "similarity_kernel.h"
