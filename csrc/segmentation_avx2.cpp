#define INFOSEG_ISA avx2
#include "segmentation_kernel.h"
