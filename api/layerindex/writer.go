package layerindex

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// A block is closed once it has that many entries, chunks or bytes of columns: small
// enough to be held in memory, large enough to compress well.
const (
	blockEntries = 16 << 10
	blockRaw     = 2 << 20
)

// Writer makes an index, entry by entry. It keeps one block in memory; the blocks that
// are closed go to the function it was made with. The same entries make the same bytes.
type Writer struct {
	// Zstd says that members are zstd frames; it is set before Close.
	Zstd bool

	out       func([]byte) error
	chunkSize int64
	header    Header
	text      int64
	size      int64 // bytes given to out
	rows      int   // entries and further chunks, for MaxEntries
	zw        *zstd.Encoder
	b         block
	// failed is the first error: nothing is written any more.
	failed error
}

// block is the block that is being filled.
type block struct {
	entries, chunks, members int
	text                     int64
	columns                  [columns][]byte
	digests                  []byte
	sets                     map[string]uint64
	path                     string
	sec                      int64
	place                    place
}

// NewWriter returns a Writer that hands the blocks, in order, to out. chunkSize is how
// long most chunks are, in bytes.
func NewWriter(chunkSize int64, out func([]byte) error) (*Writer, error) {
	if chunkSize < 1 || chunkSize > maxNumber {
		return nil, fmt.Errorf("layer index: chunks of %d bytes", chunkSize)
	}
	// One goroutine: others need the processors, and the bytes must not depend on them.
	zw, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	w := &Writer{out: out, chunkSize: chunkSize, zw: zw}
	w.b.sets = make(map[string]uint64)
	return w, nil
}

// Add appends an entry with the chunks that cover it, in the order of the TOC. Chunks of
// a layer lie one after the other. The error wraps ErrLimit or ErrUnsupported where the
// layer cannot have an index, and is that of out otherwise; the Writer then is of no
// more use.
func (w *Writer) Add(e *Entry, chunks []Chunk) error {
	if w.failed == nil {
		w.failed = w.add(e, chunks)
	}
	return w.failed
}

func (w *Writer) add(e *Entry, chunks []Chunk) error {
	if what := checkEntry(e); what != "" {
		return fmt.Errorf("%w: entry %.128q: %s", ErrUnsupported, e.Path, what)
	}
	if w.rows += max(1, len(chunks)); w.rows > MaxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrLimit, MaxEntries)
	}
	b := &w.b
	if err := b.attributes(e); err != nil {
		return fmt.Errorf("entry %.128q: %w", e.Path, err)
	}
	shared := 0
	for shared < min(len(b.path), len(e.Path)) && b.path[shared] == e.Path[shared] {
		shared++
	}
	b.number(colShared, uint64(shared))
	b.number(colSuffixSizes, uint64(len(e.Path)-shared))
	b.columns[colSuffixes] = append(b.columns[colSuffixes], e.Path[shared:]...)
	b.path = e.Path
	b.time(e)
	switch e.Type {
	case Symlink, Hardlink:
		b.number(colLinkSizes, uint64(len(e.Link)))
		b.columns[colLinks] = append(b.columns[colLinks], e.Link...)
		b.text += int64(len(e.Link))
	case Char, Block:
		b.number(colDevices, uint64(e.DevMajor))
		b.number(colDevices, uint64(e.DevMinor))
	case Reg:
		b.number(colSizes, uint64(e.Size))
	case Dir, Fifo:
	}
	b.place.since++
	if err := b.content(e, chunks, w.chunkSize); err != nil {
		return fmt.Errorf("entry %.128q: %w", e.Path, err)
	}
	b.entries++
	if b.text += int64(len(e.Path)); w.text+b.text > maxText {
		return fmt.Errorf("%w: more than %d bytes of names", ErrLimit, maxText)
	}
	return w.cut()
}

// checkEntry says what of an entry has no place in an index.
func checkEntry(e *Entry) string {
	if what := checkPath(e.Path, 0); what != "" {
		return what
	}
	switch {
	case e.Type < Dir || e.Type > Fifo:
		return "its type is not known"
	case e.Path == "" && e.Type != Dir:
		return "the root is not a directory"
	case e.Size < 0 || e.Size > maxNumber || e.Type != Reg && e.Size != 0:
		return "its size is wrong"
	case e.Nsec >= 1e9 || e.Sec < -maxNumber || e.Sec > maxNumber:
		return "its time cannot be written"
	case e.Type == Hardlink:
		return checkPath(e.Link, 0)
	case e.Type == Symlink:
		return checkLink(e.Link)
	}
	return ""
}

func (b *block) number(column int, n uint64) {
	b.columns[column] = binary.AppendUvarint(b.columns[column], n)
}

// attributes writes the number of the set of attributes, and the set when it is new.
func (b *block) attributes(e *Entry) error {
	if len(e.Xattrs) > maxXattrs {
		return fmt.Errorf("%w: more than %d extended attributes", ErrLimit, maxXattrs)
	}
	set := []byte{byte(e.Type)}
	for _, n := range []uint32{e.Mode, e.UID, e.GID, uint32(len(e.Xattrs))} {
		set = binary.AppendUvarint(set, uint64(n))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		value := e.Xattrs[name]
		switch {
		case len(name) > maxXattrName || len(value) > maxXattrValue:
			return fmt.Errorf("%w: extended attribute %.64q", ErrLimit, name)
		case name == "" || strings.IndexByte(name, 0) >= 0 || !isText(name):
			return fmt.Errorf("%w: extended attribute %.64q", ErrUnsupported, name)
		}
		set = binary.AppendUvarint(set, uint64(len(name)))
		set = append(set, name...)
		set = binary.AppendUvarint(set, uint64(len(value)))
		set = append(set, value...)
	}
	number, ok := b.sets[string(set)]
	if !ok {
		number = uint64(len(b.sets))
		b.sets[string(set)] = number
		b.columns[colSets] = append(b.columns[colSets], set...)
	}
	b.number(colAttributes, number)
	return nil
}

func (b *block) time(e *Entry) {
	t := zigzag(e.Sec-b.sec) << 1
	b.sec = e.Sec
	if e.Nsec != 0 {
		t |= 1
	}
	b.number(colTimes, t)
	if e.Nsec != 0 {
		b.number(colTimes, uint64(e.Nsec))
	}
}

// content writes the chunks of a file.
func (b *block) content(e *Entry, chunks []Chunk, chunkSize int64) error {
	left := e.Size
	for i := range chunks {
		c := &chunks[i]
		if c.Size <= 0 || c.Size > left || c.Inner < 0 || c.Inner > maxNumber || c.Offset < b.place.offset || c.Offset > maxNumber {
			return fmt.Errorf("%w: chunk %d has %d bytes at %d+%d", ErrUnsupported, i, c.Size, c.Offset, c.Inner)
		}
		var flags uint64
		if c.Size != min(chunkSize, left) {
			flags |= flagSize
			b.number(colChunkSizes, uint64(c.Size))
		}
		// The first chunk of a block always says where it is.
		member := c.Offset != b.place.offset || b.chunks == 0
		if member {
			flags |= flagMember
			b.number(colOffsets, uint64(c.Offset-b.place.offset))
			b.members++
		}
		if expected := b.place.expect(member, i == 0); c.Inner != expected {
			flags |= flagPlace
			b.number(colPlaces, zigzag(c.Inner-expected))
		}
		b.number(colFlags, flags)
		b.digests = append(b.digests, c.Digest[:]...)
		b.place = place{offset: c.Offset, end: c.Inner + c.Size}
		b.chunks++
		left -= c.Size
	}
	if left != 0 {
		return fmt.Errorf("%w: the chunks leave out %d bytes", ErrUnsupported, left)
	}
	return nil
}

// cut closes the block when it is long enough.
func (w *Writer) cut() error {
	raw := 0
	for _, c := range w.b.columns {
		raw += len(c)
	}
	if raw > maxRaw-columns*binary.MaxVarintLen64 {
		return fmt.Errorf("%w: an entry with %d bytes", ErrLimit, raw)
	}
	if raw < blockRaw && w.b.entries < blockEntries && w.b.chunks < blockEntries {
		return nil
	}
	return w.flush()
}

// flush writes the block.
func (w *Writer) flush() error {
	b := &w.b
	if b.entries == 0 {
		return nil
	}
	var raw []byte
	for _, c := range b.columns {
		raw = binary.AppendUvarint(raw, uint64(len(c)))
		raw = append(raw, c...)
	}
	packed := w.zw.EncodeAll(raw, nil)
	var out []byte
	for _, n := range []int{b.entries, b.chunks, b.members, int(b.text), len(raw), len(packed)} {
		out = binary.AppendUvarint(out, uint64(n))
	}
	out = append(append(out, packed...), b.digests...)
	if w.size += int64(len(out)); w.size > MaxPayload-int64(headerSize) {
		return fmt.Errorf("%w: more than %d bytes", ErrLimit, MaxPayload)
	}
	w.header.Entries += b.entries
	w.header.Chunks += b.chunks
	w.header.Members += b.members
	w.text += b.text
	for i := range b.columns {
		b.columns[i] = b.columns[i][:0]
	}
	clear(b.sets)
	w.b = block{columns: b.columns, digests: b.digests[:0], sets: b.sets}
	return w.out(out)
}

// headerSize bounds the payload's header.
const headerSize = len(magic) + 6*binary.MaxVarintLen64

// Close hands the last block to out and returns the header, which comes before all
// blocks. contentEnd is where in the blob the content ends.
func (w *Writer) Close(contentEnd int64) ([]byte, error) {
	if w.failed == nil {
		w.failed = w.flush()
	}
	if w.failed != nil {
		return nil, w.failed
	}
	if contentEnd < 0 || contentEnd > maxNumber {
		return nil, fmt.Errorf("layer index: the content ends at %d", contentEnd)
	}
	h := []byte(magic)
	if w.Zstd {
		h = []byte(magicZstd)
	}
	for _, n := range []int64{contentEnd, w.chunkSize, int64(w.header.Entries), int64(w.header.Chunks), int64(w.header.Members), w.text} {
		h = binary.AppendUvarint(h, uint64(n))
	}
	return h, nil
}
