#define INFOSEG_ISA avx512
#include "loss_entry.h"
