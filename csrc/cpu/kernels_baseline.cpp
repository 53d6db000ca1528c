// The CPU kernels for every machine.
#include "kernels.h"

#include <cmath>
#include <cstring>

#define ICD_INSTRUCTION_SET baseline
#include "kernels_table.h"
