// Package toc finds, bounds, parses and verifies the table of contents of one
// eStargz or zstd:chunked layer, and lays the layer's file contents out in an address space.
//
// The address space is what the kernel sees: every layer is one read-only block
// device of Index.DataSize bytes, in which each non-empty regular file occupies
// [Addr, Addr+Size), Addr being a multiple of BlockSize. Bytes between files are
// zero. The layout follows from the order of the TOC alone, so every daemon
// that reads the same TOC serves the same device.
package toc

// BlockSize is the alignment of file contents in the address space, in bytes;
// the block size of the EROFS image that points into it.
const BlockSize = 4096

// Type is what an entry is.
type Type uint8

// The types of an entry (eStargz specification, "type").
const (
	Dir Type = iota + 1
	Reg
	Symlink
	Hardlink
	Char
	Block
	Fifo
)

// Index is the verified content list of one layer. It is read-only once made.
type Index struct {
	// Entries are in TOC order, without chunks, landmarks and the TOC itself.
	// A path may occur more than once: the last one wins. Whiteouts are
	// ordinary entries here (".wh.x", ".wh..wh..opq"); package tree reads them.
	Entries []Entry
	// Chunks are the verified units of content, by ascending Addr, not overlapping.
	// Bytes of a file that no chunk has are zero.
	Chunks []Chunk
	// Members are the units of compression, by ascending Offset, not overlapping.
	// The chunks of a member are adjacent in Chunks.
	Members []Member
	// DataSize is the length of the address space in bytes, a multiple of BlockSize.
	DataSize int64
	// Compression is that of all members.
	Compression Compression
}

// Compression is how members are compressed.
type Compression uint8

// The compressions: eStargz has gzip members, zstd:chunked has zstd frames.
const (
	Gzip Compression = iota
	Zstd
)

// Entry is one file, directory or other inode of the layer.
type Entry struct {
	// Path is clean and relative: no leading or trailing slash, no "." or ".."
	// element; "" is the root directory.
	Path string
	Type Type
	// Mode has the permission, setuid, setgid and sticky bits (07777), as in tar.
	Mode     uint32
	UID, GID uint32
	// Sec and Nsec are the modification time since 1970 UTC.
	Sec  int64
	Nsec uint32
	// Size is the length of a regular file in bytes, else 0.
	Size int64
	// Addr is where a non-empty regular file begins in the address space.
	Addr int64
	// Link is a symlink's target as it is, or a hard link's target as a clean path.
	Link string
	// DevMajor and DevMinor are a device node's numbers.
	DevMajor, DevMinor uint32
	// Xattrs are the extended attributes by full name ("user.x"); nil when none.
	Xattrs map[string][]byte
}

// Chunk is a piece of one file that has a digest of its own.
type Chunk struct {
	// Addr and Size are the chunk's place in the address space; Size > 0.
	Addr, Size int64
	// Member is the index of the member that holds it, Inner its offset in bytes
	// in that member once decompressed.
	Member int
	Inner  int64
	// Digest is the SHA-256 of the uncompressed bytes.
	Digest [32]byte
	// Begin says that it is the first of a file: files whose length is a
	// multiple of BlockSize touch in the address space.
	Begin bool
}

// Member is one gzip member or zstd frame of the blob with file content, the least that can
// be fetched and decompressed.
type Member struct {
	// Offset and Size are its place in the compressed blob. Size may include
	// members without content that follow it (tar headers): a reader stops
	// when it has its chunks.
	Offset, Size int64
	// First and Count say which chunks it holds: Chunks[First:First+Count].
	First, Count int
}

// MemberRange returns the members [from, to) that hold the bytes
// [addr, addr+n) of the address space; from == to when only padding is there.
func (x *Index) MemberRange(addr, n int64) (from, to int) {
	i, j := x.ChunkRange(addr, n)
	if i == j {
		return 0, 0
	}
	return x.Chunks[i].Member, x.Chunks[j-1].Member + 1
}

// ChunkRange returns the chunks [i, j) that overlap [addr, addr+n).
func (x *Index) ChunkRange(addr, n int64) (i, j int) {
	i = searchChunks(x.Chunks, addr)
	j = i
	for j < len(x.Chunks) && x.Chunks[j].Addr < addr+n {
		j++
	}
	return i, j
}

// searchChunks returns the first chunk that ends after addr.
func searchChunks(c []Chunk, addr int64) int {
	lo, hi := 0, len(c)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if c[mid].Addr+c[mid].Size > addr {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}
