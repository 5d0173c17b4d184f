#define INFOSEG_ISA portable
#include "mutual_information_kernel.h"
