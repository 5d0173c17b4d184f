#define INFOSEG_ISA avx2
#include "refinement_kernel.h"
