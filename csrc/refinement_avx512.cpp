#define INFOSEG_ISA avx512
#include "refinement_kernel.h"
