#define INFOSEG_ISA portable
#include "loss_entry.h"
