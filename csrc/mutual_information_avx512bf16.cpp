// bfloat16 alone: the other types have nothing to gain from these instructions.
#define INFOSEG_ISA avx512bf16
#define INFOSEG_BF16_ONLY
#include "loss_entry.h"
