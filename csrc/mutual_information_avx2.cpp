#define INFOSEG_ISA avx2
#include "loss_entry.h"
