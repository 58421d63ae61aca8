// What Python calls: plain C, device pointers and a stream. Functions that return int return a
// cudaError_t and only enqueue work.
#include "screen.cuh"

using namespace vqkern::hopper;

namespace {

// Places in one piece of memory, each on a boundary of 256 bytes.
struct Memory {
  uint8_t* start;
  int64_t used = 0;

  template <class Type>
  Type* take(int64_t count) {
    uint8_t* place = start + used;
    used += (count * static_cast<int64_t>(sizeof(Type)) + 255) / 256 * 256;
    return reinterpret_cast<Type*>(place);
  }
};

constexpr int kSurveyBlocks = 132;

struct Codes {
  double* spread;  // the first, where Python looks for it
  float* centre;
  float* half_norms;
  float4* terms;
  uint8_t* packed;
  double* sum;
  float *low, *high;
  int* count;
  int tiles, chunks;
  int64_t bytes;

  Codes(bool int8, void* memory, int k, int d) {
    Memory left = {static_cast<uint8_t*>(memory)};
    const int columns = int8 ? kInt8Columns : kHalfColumns;
    tiles = (k + columns - 1) / columns;
    chunks = int8 ? int8_chunks(d) : half_chunks(d);
    spread = left.take<double>(1);
    centre = left.take<float>(d);
    half_norms = left.take<float>(int8 ? static_cast<int64_t>(tiles) * columns : 0);
    terms = left.take<float4>(static_cast<int64_t>(tiles) * kQuarters * (int8 ? 2 : 1));
    packed = left.take<uint8_t>(static_cast<int64_t>(tiles) * columns * chunks * kChunk);
    sum = left.take<double>(static_cast<int64_t>(kSurveyBlocks) * d);
    low = left.take<float>(static_cast<int64_t>(kSurveyBlocks) * d);
    high = left.take<float>(static_cast<int64_t>(kSurveyBlocks) * d);
    count = left.take<int>(kSurveyBlocks);
    bytes = left.used;
  }
};

struct Rows {
  float4* terms;
  uint8_t* packed;
  int64_t bytes;

  Rows(void* memory, int n, int chunks) {
    Memory left = {static_cast<uint8_t*>(memory)};
    terms = left.take<float4>(n);
    packed = left.take<uint8_t>(static_cast<int64_t>(n + kRows - 1) / kRows * kRows * chunks * kChunk);
    bytes = left.used;
  }
};

}  // namespace

extern "C" {

// Changes with any signature below: Python calls no library of another number.
int vqkern_hopper_abi() { return 1; }

const char* vqkern_hopper_error(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

// Bytes of prepared codes, and of the rows that are screened together.
int64_t vqkern_hopper_codes_bytes(int int8, int k, int d) { return Codes(int8, nullptr, k, d).bytes; }

int64_t vqkern_hopper_rows_bytes(int int8, int n, int d) {
  return Rows(nullptr, n, int8 ? int8_chunks(d) : half_chunks(d)).bytes;
}

// Centre and spread of codes [k, d]; for int8 their norms, too, in whose order they are packed.
int vqkern_hopper_survey(int int8, const float* codes, int k, int d, void* prepared, float* norms,
                         cudaStream_t stream) {
  const Codes c(int8, prepared, k, d);
  const int blocks = min(kSurveyBlocks, (k + 7) / 8);
  int error = survey(codes, k, d, blocks, c.sum, c.low, c.high, c.count, c.centre, c.spread, stream);
  if (error || !int8) return error;
  return code_norms(codes, k, d, c.centre, c.spread, norms, stream);
}

int vqkern_hopper_pack_codes(int int8, const float* codes, int k, int d, const int64_t* order,
                             void* prepared, cudaStream_t stream) {
  const Codes c(int8, prepared, k, d);
  if (!int8) return pack_codes_half(codes, k, d, c.centre, c.spread, c.packed, c.terms, stream);
  return pack_codes_int8(codes, k, d, c.centre, c.spread, order, c.chunks, c.packed, c.half_norms,
                         c.terms, stream);
}

// Indices and distances of rows [n, d], but for those that end on a list.
int vqkern_hopper_search(int int8, const float* z, int n, const float* codes, int k, int d,
                         const int64_t* order, void* prepared, void* rows, int8_t* state,
                         Kept* kept, int* kept_count, float* upper, int splits, int capacity,
                         int* candidates, int64_t* index, float* distance, int* tied_rows,
                         int* tied_count, int* left_rows, int* left_count,
                         unsigned long long* measured, cudaStream_t stream) {
  const Codes c(int8, prepared, k, d);
  const Rows r(rows, n, c.chunks);
  const Screen s = {r.packed, r.terms, state, c.packed, c.terms, kept, kept_count, upper, n,
                    c.tiles, (c.tiles + splits - 1) / splits, c.chunks, capacity, 0};
  const Decision out = {index, distance, tied_rows, tied_count, left_rows, left_count,
                        measured};
  int error;
  if (int8) {
    error = pack_rows_int8(z, n, d, c.centre, c.spread, c.chunks, r.packed, r.terms, state, stream);
    if (!error) error = screen_int8(s, splits, stream);
    if (error) return error;
    return decide_int8(s, splits, c.half_norms, order, z, codes, d, state, candidates, out, stream);
  }
  error = pack_rows_half(z, n, d, c.centre, c.spread, r.packed, r.terms, state, stream);
  if (!error) error = screen_half(s, splits, stream);
  if (error) return error;
  return decide_half(s, splits, z, codes, k, d, state, out, stream);
}
}
