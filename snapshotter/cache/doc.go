// Package cache keeps the verified chunks of layers on disk, within a budget.
//
// One layer is one directory, <root>/<key>/:
//
//	data    a sparse file in the layer's address space (toc.Index.DataSize bytes)
//	state   one bit a chunk, lowest bit first: "data may hold this chunk"
//	sealed  an empty file, where data may have other readers (Blob.Seal)
//	...     small files of the caller (WriteFile), each replaced as a whole
//
// # What is trusted
//
// Nothing on disk is. A chunk that was there when the process started is
// unverified: its first read hashes it, and what does not match its digest is
// dropped and fetched again. So a torn write, a lost page or an edit by hand
// costs one more fetch and never a wrong byte, state is only a hint, and no
// fsync is needed. What this process wrote or hashed itself is believed until it
// ends; a lock on the root keeps a second process from punching holes into it.
//
// # Why not one value per key
//
// The usual seam of a cache is "get this key, or fill it", with a []byte for
// each value. Here a read asks for 128 KiB of a 256 KiB chunk, thousands of times
// a second. So the cache reads straight into the caller's buffer and a hit
// allocates nothing; and as data has the layout of the layer, a complete layer
// is a file that the kernel can be given as it is. Who fetches what is missing,
// and that it does so once, is the business of package layer.
//
// # Sealed layers
//
// The kernel reads a complete layer's data by itself, without asking. Such a layer
// gives up no single chunk any more, as that would be zeros in the middle of a program:
// it goes as a whole, by its name, and who has the file open keeps it. The seal is on
// disk, as readers outlive this process. Half of the budget may be sealed.
//
// # Reads beside eviction
//
// No lock is held while a chunk is read. Each chunk has one word: its state and
// a generation which grows whenever its bytes are about to change. A read that
// finds another generation after its pread than before is a miss.
package cache
