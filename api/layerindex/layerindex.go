// Package layerindex is the binary index of one layer: the facts of its table of
// contents (TOC) that a node needs to mount it, in a form that takes a fiftieth of
// the JSON's time to read. It does no I/O and imports nothing of this project.
//
// # Where it is
//
// The index lies in the layer's blob between the TOC and the footer, as the extra
// fields of empty gzip members (RFC 1952, section 2.3.1.1), so that the blob stays a
// valid tar+gzip and a valid eStargz layer: to unpack them yields nothing.
//
//	[content]...[TOC][index member]...[footer]
//
// Each member has one subfield, "LI", of up to 65531 bytes. The subfields of all
// members, one after the other, are the payload; its SHA-256 is in the manifest.
// See [AppendMembers] and [Payload].
//
// In a layer of zstd frames (zstd:chunked) the payload is one skippable frame (RFC 8878,
// section 3.1.2) with the magic 0x184D2A5A. See [FrameHeader].
//
// # What is in it
//
// Numbers are unsigned varints as in package encoding/binary. zigzag(n) is n<<1 for
// n >= 0, else ^(n<<1).
//
//	payload  magic contentEnd chunkSize entries chunks members text block...
//	block    entries chunks members text rawSize packedSize packed digests
//
// magic is "APPRIDX1" where members are gzip members, "APPRIDZ1" where they are zstd
// frames. contentEnd is where in the blob the content ends and the TOC begins; chunkSize how
// long a chunk is unless it says otherwise. entries, chunks and members are counts,
// text is the bytes of all paths and link targets: in the header of the payload those
// of all blocks. packed is a zstd frame of rawSize bytes once decompressed, digests
// the SHA-256 of the block's chunks, 32 bytes each. No block depends on another.
//
// The frame holds the columns, each with its length before it. In this order:
//
//	attribute sets  type mode uid gid n (nameSize name valueSize value)...  sorted by name
//	attributes      for each entry, the number of its set
//	shared          for each entry, how many bytes its path shares with the one before
//	suffix sizes    for each entry, how many bytes follow
//	suffixes        these bytes
//	times           for each entry, zigzag(seconds since the entry before)<<1,
//	                |1 when nanoseconds follow
//	sizes           for each regular file
//	link sizes      for each symbolic and hard link
//	links           their targets
//	devices         for each device node, major and minor
//	chunk flags     for each chunk: 1 it has a size, 2 it begins a member, 4 it has a place
//	chunk sizes     where flagged; else chunkSize, or what is left of the file if less
//	offsets         where flagged: of the member in the blob, since the member before
//	places          where flagged: zigzag(offset in the member - the expected one)
//
// A regular file that is not empty has as many chunks as cover it. The expected place
// of a chunk is 0 in a new member, behind the chunk before for a file's second and
// later ones, and else where the content of a tar entry would be if each entry since
// the last content had one header block.
//
// # Rules
//
// Paths are clean: relative, "" for the root, no empty, "." or ".." element. They are
// UTF-8 without U+FFFD and without NUL, up to 4096 bytes with elements of up to 255. So
// are the targets of hard links; those of symbolic links are any UTF-8 without U+FFFD
// and NUL, 1 to 4095 bytes. Entries are in the order of the TOC, without the format's
// own (landmarks, the TOC itself). A reader refuses everything else, and what is larger
// than [MaxEntries] and the other limits; a writer leaves such layers without index.
package layerindex

import (
	"errors"
	"fmt"
)

// Type is what an entry is. The values are those of the format.
type Type uint8

// The types of an entry.
const (
	Dir Type = iota + 1
	Reg
	Symlink
	Hardlink
	Char
	Block
	Fifo
)

// Entry is one tar entry of a layer.
type Entry struct {
	// Path is clean and relative, "" is the root.
	Path string
	Type Type
	// Mode has the bits 07777.
	Mode, UID, GID uint32
	// Sec and Nsec are the modification time since 1970 UTC.
	Sec  int64
	Nsec uint32
	// Size is the length of a regular file in bytes, else 0.
	Size int64
	// Link is a symbolic link's target as it is, a hard link's as a clean path.
	Link string
	// DevMajor and DevMinor are a device node's numbers, else 0.
	DevMajor, DevMinor uint32
	// Xattrs are the extended attributes by full name; nil when there are none. Entries
	// that a Reader returns share equal maps: they are not to be changed.
	Xattrs map[string][]byte
}

// Chunk is a piece of a regular file's content.
type Chunk struct {
	// Offset is where the member that holds it begins in the blob, Inner where it
	// begins in that member once decompressed, Size how long it is, all in bytes.
	Offset, Inner, Size int64
	// Digest is the SHA-256 of its bytes.
	Digest [32]byte
}

// Header says what is in an index.
type Header struct {
	// ContentEnd is where the content ends in the blob, in bytes.
	ContentEnd int64
	// Entries, Chunks and Members are how many of them there are.
	Entries, Chunks, Members int
	// Zstd says that members are zstd frames, not gzip members.
	Zstd bool
}

// Limits of an index. Each is far above real layers and keeps a hostile index from
// using up memory, or is what Linux can express.
const (
	MaxPayload = 128 << 20 // bytes of the payload
	MaxEntries = 1 << 20   // entries and further chunks of files

	maxText       = 128 << 20 // bytes of all paths and link targets
	maxRaw        = 32 << 20  // bytes of a block's columns
	maxPath       = 4096      // PATH_MAX
	maxElement    = 255       // NAME_MAX
	maxSymlink    = 4095      // PATH_MAX without its NUL
	maxNumber     = 1 << 56   // of sizes and offsets: sums of some stay far from overflow
	maxXattrs     = 1024      // extended attributes of one set
	maxXattrName  = 255       // XATTR_NAME_MAX
	maxXattrValue = 1<<16 - 1 // XATTR_SIZE_MAX, and less by what EROFS can express

	digestSize = 32
	blockSize  = 512 // of a tar
)

// The beginnings of a payload, of the same length.
const (
	magic     = "APPRIDX1"
	magicZstd = "APPRIDZ1"
)

// The columns of a block, in their order.
const (
	colSets = iota
	colAttributes
	colShared
	colSuffixSizes
	colSuffixes
	colTimes
	colSizes
	colLinkSizes
	colLinks
	colDevices
	colFlags
	colChunkSizes
	colOffsets
	colPlaces
	columns
)

// The flags of a chunk.
const (
	flagSize = 1 << iota
	flagMember
	flagPlace
	flagsAll = 1<<iota - 1
)

// Why an index is refused; for errors.Is.
var (
	// ErrCorrupt says that the bytes are no index, or one that contradicts itself.
	ErrCorrupt = errors.New("the layer index is damaged")
	// ErrLimit says that the layer is beyond what an index may hold.
	ErrLimit = errors.New("the layer index exceeds a limit")
	// ErrUnsupported says that the layer has something that an index cannot say.
	ErrUnsupported = errors.New("the layer index cannot express the layer")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func zigzag(n int64) uint64 { return uint64(n)<<1 ^ uint64(n>>63) }

func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// place follows where content is expected, the same way when writing and reading.
type place struct {
	offset int64 // of the last member
	end    int64 // of the last chunk in it
	since  int64 // entries since, that with the chunk included
}

// expect returns where the next chunk is expected in its member.
func (p *place) expect(newMember, first bool) int64 {
	switch {
	case newMember:
		return 0
	case first:
		return (p.end+blockSize-1)/blockSize*blockSize + p.since*blockSize
	}
	return p.end
}
