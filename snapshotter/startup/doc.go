// Package startup makes the next start of an image faster by the last one: it
// records which chunks of its layers a starting container reads, and streams those
// that earlier starts read before the container asks for them.
//
//	first Prepare ─► find a profile (referrers, kept tables) ─► stream its pack
//	layers loaded ─► chunks of the pack go where their hashes belong
//	mounted ───────► record first reads
//	container ─────► 20 s, or 5 s without a new chunk ─► a sample for the next profile
//
// # Nothing is believed
//
// A table says where the frames of a pack end and which chunks it claims to hold. Each
// chunk that arrives is hashed, and the hash finds the places in the image's verified
// indexes; one that belongs nowhere is dropped. So a profile of any origin costs
// bandwidth at worst, and that is bounded: by a budget, by a look at what the program
// reads (fewer than a quarter of its first chunks in the table: the stream ends), and
// by giving way between frames while requests of readers are under way.
//
// # Nothing waits for it
//
// Finding a profile has two seconds beside what a start does anyway. A reader waits
// for a chunk on the stream only while that is plausibly sooner than a request of its
// own; when the stream breaks, stalls or ends, all go on by themselves.
package startup
