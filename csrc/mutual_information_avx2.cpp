#define INFOSEG_ISA avx2
#include "mutual_information_kernel.h"
