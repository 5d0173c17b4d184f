#define INFOSEG_ISA avx512
#include "segmentation_kernel.h"
