#define INFOSEG_ISA portable
#include "refinement_kernel.h"
