// Structures shared with Python, see ../tracker.py. Places are in mm, directions in world axes.

#pragma once
#include <cstdint>

extern "C" {

struct ShdGrid {
  int32_t shape[3];
  double to_voxel[12]; // rows of the affine from mm to voxels
};

// Functions on the sphere in the voxels of a box; coefficients of even degrees, of each degree the orders -l..l.
struct ShdField {
  ShdGrid grid;              // of the box
  int32_t l_max, n;          // degree; number of coefficients
  int32_t stride;            // numbers from one row to the next
  const int32_t *rows;       // [x][y][z] row of each voxel, -1 where there is none
  const float *coefficients; // [row][stride]
  const float *swap;         // of each degree the matrix (2 l + 1)^2 that turns coefficients by (x, y, z) -> (-x, z, y)
};

// Tissues, on a grid of their own; outside of it there is none.
struct ShdAnatomy {
  ShdGrid grid;
  const float *shares; // [x][y][z][4] cortical grey matter, deep grey matter, fluid, and where a streamline that fades may end
};

// Directions to choose from, as basis[coefficient][padded]. For the arcs of a step they stand around the pole, and where an arc
// ends is interpolated between the corners of a triangle around the end of the straight one.
struct ShdCone {
  int32_t n, padded;
  const float *halfway, *end; // basis at half the angle of an arc, and at its end
  const float *corners;       // [3][padded] shares of the corners at azimuths 0, 120 and 240 degrees
  const float *area;          // solid angle that each stands for, up to a factor
  const float *direction;     // [n][3]
  float radius;               // of the triangle, mm
};

struct ShdRules {
  int32_t is_probabilistic;
  float step;        // mm
  float max_angle;   // radians in a step
  float min_length, max_length; // mm
  float cutoff;      // least amplitude
  int32_t rewinds;   // how often a streamline may go back from where it must not end
  uint64_t seed;     // of the random numbers
};
}
