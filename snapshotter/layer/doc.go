// Package layer turns offsets of one layer into verified bytes.
//
//	ReadAt ─► cache hit: pread into the caller's buffer
//	   └────► miss: claim members ─► one range request ─► decompress ─► SHA-256 ─► waiters
//	                                                                    └────► cache
//
// # One fetch of each member
//
// A member, of gzip or a frame of zstd, is the least that can be fetched. Who needs
// one claims it under one lock: a member that is being fetched already is joined, the others
// become a request, together with missing neighbours, because a request costs a
// round trip and 256 KiB cost little more. A reader gets its bytes from memory as
// soon as its member is verified; the cache gets them afterwards, and when it
// cannot keep them (a full disk) the last few stay in memory instead.
//
// Requests belong to the layer, not to the reader that caused them: a cancelled
// reader leaves, the bytes still arrive for the others. Close ends everything.
//
// # Failure
//
// Bytes that do not match their digest are fetched once more, from the
// beginning, in case a proxy spoilt them; then the read fails with a
// *DigestError. They are never kept or returned. A failed request fails those who
// wait for it, once; nothing remembers the failure, the next read tries again. A
// reader that only joined somebody else's request tries once itself.
//
// # Demand before background
//
// Requests made by Fetch are background work: between members they give way to
// demand reads (Gate), and when a reader needs a member far down such a request,
// the request is cut short and the reader asks for what it needs itself. Where that would
// take longer than fetching everything, the layer is Eager, and neither waits for the other.
//
// Sequential reads of a large file are noticed and fetched ahead of, in windows
// that double up to Options.ReadAhead: the kernel reads ahead 128 KiB, which on a
// link with latency means one small request at a time.
package layer
