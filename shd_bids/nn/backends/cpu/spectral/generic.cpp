// The kernels for any processor.

#define SHD_NAME generic
#define SHD_WIDTH 4
#if defined(__aarch64__)
#define SHD_ROWS 12
#else
#define SHD_ROWS 4
#endif
#define SHD_TARGET
#include "kernels.h"

const shd::Level shd::kGeneric = SHD_LEVEL(generic);
