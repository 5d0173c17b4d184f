#define INFOSEG_ISA portable
#include "segmentation_kernel.h"
