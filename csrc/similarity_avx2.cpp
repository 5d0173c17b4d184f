#define INFOSEG_ISA avx2
#include "similarity_kernel.h"
