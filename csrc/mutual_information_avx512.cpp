#define INFOSEG_ISA avx512
#include "mutual_information_kernel.h"
