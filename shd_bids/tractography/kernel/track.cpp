// Entry points: streamlines of many seeds, in the order of the seeds whatever the number of threads.

#include <atomic>
#include <memory>
#include <thread>

#include "walk.h"

namespace shd {
namespace {

struct Found {
  std::vector<float> points;
  End ends[2];
};

struct Tracks {
  std::vector<float> points;      // [point][3]
  std::vector<int64_t> lengths;   // points of each streamline
  std::vector<int64_t> seeds;     // of each streamline
  std::vector<uint8_t> ends;      // [streamline][2]
  int64_t started = 0, short_or_long = 0, refused[kEnds] = {};
};

enum Fate : uint8_t { kNowhere, kKept, kShortOrLong, kRefused };

// Track one seed both ways; keep what has an allowed length and allowed ends.
Fate track(const Walker &walker, Vec3 place, uint64_t number, std::vector<Pose> (&sides)[2], Found &found) {
  const ShdRules &rules = walker.rules;
  Random random(rules.seed, number);
  Vec3 direction;
  if (!walker.can_start(place)) return kNowhere;
  if (!walker.start(place, random, direction)) return kNowhere;
  for (int k = 0; k < 2; ++k) found.ends[k] = walker.side({place, k ? -direction : direction}, random, sides[k]);
  const int64_t n = sides[0].size() + sides[1].size() - 1;
  if (n < 2) return kNowhere;
  const double length = double(n - 1) * rules.step;
  if (found.ends[0] == kLength || found.ends[1] == kLength || length < rules.min_length || length > rules.max_length) return kShortOrLong;
  if (walker.anatomy && std::max(found.ends[0], found.ends[1]) > kMask) return kRefused;
  found.points.clear();
  const auto put = [&](const Pose &pose) {
    for (double value : {pose.place.x, pose.place.y, pose.place.z}) found.points.push_back(float(value));
  };
  for (size_t k = sides[1].size(); k-- > 1;) put(sides[1][k]);
  for (const Pose &pose : sides[0]) put(pose);
  std::swap(found.ends[0], found.ends[1]);
  return kKept;
}

} // namespace
} // namespace shd

using namespace shd;

extern "C" {

const char *shd_source() { return SHD_SOURCE; }

// Track seeds at places[n][3], numbered from `first` on; free the result with shd_tracks_free.
// Without anatomy that is null.
void *shd_track(const ShdField *field, const ShdAnatomy *anatomy, const ShdRules *rules, const ShdCone *cone,
                const ShdCone *sphere, const double *places, int64_t first, int64_t n, int32_t threads) {
  constexpr int64_t kAtOnce = 64;
  const int64_t parts = (n + kAtOnce - 1) / kAtOnce;
  std::vector<Tracks> results(parts);
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    const Walker walker{*field, anatomy, *rules, *cone, *sphere};
    std::vector<Pose> sides[2];
    Found found;
    for (int64_t part; (part = next++) < parts;) {
      Tracks &tracks = results[part];
      for (int64_t k = part * kAtOnce; k < std::min(n, (part + 1) * kAtOnce); ++k) {
        const double *p = places + 3 * k;
        const Fate fate = track(walker, {p[0], p[1], p[2]}, uint64_t(first + k), sides, found);
        tracks.started += fate != kNowhere;
        tracks.short_or_long += fate == kShortOrLong;
        if (fate == kRefused) ++tracks.refused[std::max(found.ends[0], found.ends[1])];
        if (fate != kKept) continue;
        tracks.points.insert(tracks.points.end(), found.points.begin(), found.points.end());
        tracks.lengths.push_back(int64_t(found.points.size() / 3));
        tracks.seeds.push_back(first + k);
        tracks.ends.insert(tracks.ends.end(), found.ends, found.ends + 2);
      }
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < std::max(1, int(threads)); ++t) others.emplace_back(work);
  work();
  for (auto &other : others) other.join();
  auto all = std::make_unique<Tracks>();
  for (Tracks &part : results) {
    all->points.insert(all->points.end(), part.points.begin(), part.points.end());
    all->lengths.insert(all->lengths.end(), part.lengths.begin(), part.lengths.end());
    all->seeds.insert(all->seeds.end(), part.seeds.begin(), part.seeds.end());
    all->ends.insert(all->ends.end(), part.ends.begin(), part.ends.end());
    all->started += part.started, all->short_or_long += part.short_or_long;
    for (int k = 0; k < kEnds; ++k) all->refused[k] += part.refused[k];
    part = Tracks();
  }
  return all.release();
}

// Numbers of streamlines, of points, of seeds that gave a streamline, of those of another length, and of those refused by end.
void shd_tracks_counts(const void *tracks, int64_t *counts) {
  const Tracks &t = *static_cast<const Tracks *>(tracks);
  const int64_t values[] = {int64_t(t.lengths.size()), int64_t(t.points.size() / 3), t.started, t.short_or_long};
  std::copy(values, values + 4, counts);
  std::copy(t.refused, t.refused + kEnds, counts + 4);
}

void shd_tracks_copy(const void *tracks, float *points, int64_t *lengths, int64_t *seeds, uint8_t *ends) {
  const Tracks &t = *static_cast<const Tracks *>(tracks);
  std::copy(t.points.begin(), t.points.end(), points);
  std::copy(t.lengths.begin(), t.lengths.end(), lengths);
  std::copy(t.seeds.begin(), t.seeds.end(), seeds);
  std::copy(t.ends.begin(), t.ends.end(), ends);
}

void shd_tracks_free(void *tracks) { delete static_cast<Tracks *>(tracks); }
}
