// The CPU kernels for every machine.
#include "kernels.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#define ICD_INSTRUCTION_SET baseline
#define ICD_VECTOR_BYTES 16
#include "kernels_table.h"
