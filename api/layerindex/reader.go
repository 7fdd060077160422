package layerindex

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Reader yields the entries of an index, one after the other.
type Reader struct {
	// Header is what the index says of itself; it is true once Next said io.EOF.
	Header Header

	chunkSize int64
	text      int64  // bytes of strings that are left
	rest      []byte // blocks that were not begun
	left      Header // entries, chunks and members that are left
	rows      int    // entries and further chunks seen
	zr        *zstd.Decoder
	b         blockReader
	chunks    []Chunk
}

// NewReader begins to read a payload, whose digest the caller has verified. It belongs
// to the Reader until the end. The error wraps ErrCorrupt or ErrLimit, as those of Next.
func NewReader(payload []byte) (*Reader, error) {
	if len(payload) > MaxPayload {
		return nil, limit("it has %d bytes", len(payload))
	}
	rest, ok := bytes.CutPrefix(payload, []byte(magic))
	isZstd := false
	if !ok {
		if rest, isZstd = bytes.CutPrefix(payload, []byte(magicZstd)); !isZstd {
			return nil, corrupt("it does not begin with %q", magic)
		}
	}
	var n [6]int64
	rest, err := numbers(rest, n[:])
	if err != nil {
		return nil, err
	}
	r := &Reader{chunkSize: n[1], text: n[5], rest: rest}
	switch {
	case n[2] > MaxEntries || n[3] > MaxEntries || n[4] > n[3] || n[5] > maxText:
		return nil, limit("%d entries, %d chunks, %d members, %d bytes of text", n[2], n[3], n[4], n[5])
	case r.chunkSize == 0:
		return nil, corrupt("chunks have no size")
	}
	r.Header = Header{ContentEnd: n[0], Entries: int(n[2]), Chunks: int(n[3]), Members: int(n[4]), Zstd: isZstd}
	r.left = r.Header
	r.zr, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecoderMaxWindow(maxRaw))
	return r, err
}

// numbers reads as many numbers as n has.
func numbers(b []byte, n []int64) ([]byte, error) {
	for i := range n {
		v, size := binary.Uvarint(b)
		if size <= 0 || v > maxNumber {
			return nil, corrupt("a number is missing or too large")
		}
		n[i], b = int64(v), b[size:]
	}
	return b, nil
}

// Next sets e to the next entry and returns its chunks, valid until the next call. The
// error is io.EOF behind the last entry.
func (r *Reader) Next(e *Entry) ([]Chunk, error) {
	b := &r.b
	for b.entries == 0 {
		if err := r.block(); err != nil {
			return nil, err
		}
	}
	b.entries--
	set, ok := b.set()
	if !ok {
		return nil, corrupt("an entry has no attributes")
	}
	*e = *set
	if what := b.path(e); what != "" {
		return nil, corrupt("%s", what)
	}
	b.time(e)
	b.place.since++
	r.chunks = r.chunks[:0]
	what := ""
	switch e.Type {
	case Reg:
		if size := b.col[colSizes].next(); size > 0 {
			what = r.content(e, size)
		}
	case Symlink, Hardlink:
		what = b.link(e)
	case Char, Block:
		e.DevMajor, e.DevMinor = b.col[colDevices].next32(), b.col[colDevices].next32()
	case Dir, Fifo:
	}
	if what != "" {
		return nil, corrupt("entry %.128q: %s", e.Path, what)
	}
	if r.rows += max(1, len(r.chunks)); r.rows > MaxEntries {
		return nil, limit("more than %d entries", MaxEntries)
	}
	if b.entries == 0 {
		return r.chunks, b.end()
	}
	return r.chunks, nil
}

// block opens the next block.
func (r *Reader) block() error {
	if len(r.rest) == 0 {
		if r.left.Entries != 0 || r.left.Chunks != 0 || r.left.Members != 0 || r.text != 0 {
			return corrupt("blocks are missing")
		}
		return io.EOF
	}
	var n [6]int64
	rest, err := numbers(r.rest, n[:])
	if err != nil {
		return err
	}
	entries, chunks, members, text, raw, packed := n[0], n[1], n[2], n[3], n[4], n[5]
	switch {
	case raw > maxRaw:
		return limit("a block of %d bytes", raw)
	case entries == 0 || entries > int64(r.left.Entries) || chunks > int64(r.left.Chunks) || members > int64(r.left.Members) || text > r.text:
		return corrupt("a block holds more than the whole")
	case packed > int64(len(rest)) || chunks*digestSize > int64(len(rest))-packed:
		return corrupt("a block is cut off")
	}
	r.left.Entries -= int(entries)
	r.left.Chunks -= int(chunks)
	r.left.Members -= int(members)
	r.text -= text
	plain, err := r.zr.DecodeAll(rest[:packed], make([]byte, 0, raw))
	if err != nil {
		return corrupt("%v", err)
	}
	if int64(len(plain)) != raw {
		return corrupt("a block has %d bytes, not %d", len(plain), raw)
	}
	digests := rest[packed : packed+chunks*digestSize]
	r.rest = rest[packed+chunks*digestSize:]
	return r.b.open(plain, digests, int(entries), int(members), int(text))
}

// content reads the chunks of a file of size bytes.
func (r *Reader) content(e *Entry, size uint64) (what string) {
	b := &r.b
	if size > maxNumber {
		return "it is too large"
	}
	e.Size = int64(size)
	for left := e.Size; left > 0; {
		if len(b.digests) == 0 {
			return "a chunk has no digest"
		}
		flags := b.col[colFlags].next()
		if flags > flagsAll {
			return "a chunk has unknown flags"
		}
		n := min(r.chunkSize, left)
		if flags&flagSize != 0 {
			n = b.col[colChunkSizes].number()
		}
		if n <= 0 || n > left {
			return "a chunk leaves its file"
		}
		member := flags&flagMember != 0
		if member {
			b.members--
			b.place.offset += b.col[colOffsets].number()
		} else if !b.begun {
			return "the first chunk is in no member"
		}
		b.begun = true
		inner := b.place.expect(member, len(r.chunks) == 0)
		if flags&flagPlace != 0 {
			inner += unzigzag(b.col[colPlaces].next())
		}
		if inner < 0 || inner > maxNumber || b.place.offset > maxNumber {
			return "a chunk lies nowhere"
		}
		r.chunks = append(r.chunks, Chunk{Offset: b.place.offset, Inner: inner, Size: n, Digest: [digestSize]byte(b.digests)})
		b.digests = b.digests[digestSize:]
		b.place = place{offset: b.place.offset, end: inner + n}
		left -= n
	}
	return ""
}

// blockReader is the block that is being read.
type blockReader struct {
	entries, members int // left
	col              [columns]column
	sets             []Entry
	digests          []byte
	text             strings.Builder
	textLeft         int
	last             string // path
	sec              int64
	place            place
	begun            bool // a chunk was seen
}

// open begins a block.
func (b *blockReader) open(raw, digests []byte, entries, members, text int) error {
	*b = blockReader{entries: entries, members: members, digests: digests, sets: b.sets[:0], textLeft: text}
	b.text.Grow(text)
	for i := range b.col {
		n, size := binary.Uvarint(raw)
		if size <= 0 || n > uint64(len(raw)-size) {
			return corrupt("a column is cut off")
		}
		b.col[i].b, raw = raw[size:size+int(n)], raw[size+int(n):]
	}
	if len(raw) > 0 {
		return corrupt("something follows the columns")
	}
	for c := &b.col[colSets]; c.i < len(c.b); {
		e, err := readSet(c)
		if err != nil {
			return err
		}
		b.sets = append(b.sets, e)
	}
	return nil
}

// readSet reads one set of attributes.
func readSet(c *column) (Entry, error) {
	e := Entry{Type: Type(c.next32()), Mode: c.next32(), UID: c.next32(), GID: c.next32()}
	n := c.next32()
	switch {
	case e.Type < Dir || e.Type > Fifo:
		return e, corrupt("type %d is not known", e.Type)
	case n > maxXattrs:
		return e, limit("%d extended attributes", n)
	case n > 0:
		e.Xattrs = make(map[string][]byte, n)
	}
	last := ""
	for range n {
		name, value := string(c.bytes()), bytes.Clone(c.bytes())
		switch {
		case c.bad:
			return e, corrupt("an extended attribute is cut off")
		case name <= last || strings.IndexByte(name, 0) >= 0 || !isText(name):
			return e, corrupt("the extended attribute %.64q", name)
		case len(name) > maxXattrName || len(value) > maxXattrValue:
			return e, limit("the extended attribute %.64q", name)
		case value == nil:
			value = []byte{}
		}
		last = name
		e.Xattrs[name] = value
	}
	if c.bad {
		return e, corrupt("a set of attributes is cut off")
	}
	return e, nil
}

// set returns the attributes of the next entry.
func (b *blockReader) set() (*Entry, bool) {
	if i := b.col[colAttributes].next(); i < uint64(len(b.sets)) {
		return &b.sets[i], true
	}
	return nil, false
}

// path reads the path of an entry.
func (b *blockReader) path(e *Entry) (what string) {
	shared, size := b.col[colShared].next(), b.col[colSuffixSizes].next()
	if shared > uint64(len(b.last)) || size > uint64(b.textLeft) {
		return "a path shares more than there is"
	}
	suffix := b.col[colSuffixes].take(int(size))
	if int(shared+size) > b.textLeft {
		return "there is more text than announced"
	}
	b.textLeft -= int(shared + size)
	from := b.text.Len()
	_, _ = b.text.WriteString(b.last[:shared]) // never fails
	_, _ = b.text.Write(suffix)
	e.Path = b.text.String()[from:]
	if what := checkPath(e.Path, int(shared)); what != "" {
		return what
	}
	if e.Path == "" && e.Type != Dir {
		return "the root is not a directory"
	}
	b.last = e.Path
	return ""
}

// link reads the target of a link.
func (b *blockReader) link(e *Entry) (what string) {
	size := b.col[colLinkSizes].next()
	if size > uint64(b.textLeft) {
		return "there is more text than announced"
	}
	b.textLeft -= int(size)
	from := b.text.Len()
	_, _ = b.text.Write(b.col[colLinks].take(int(size))) // never fails
	e.Link = b.text.String()[from:]
	if e.Type == Hardlink {
		return checkPath(e.Link, 0)
	}
	return checkLink(e.Link)
}

// time reads the time of an entry.
func (b *blockReader) time(e *Entry) {
	t := b.col[colTimes].next()
	b.sec += unzigzag(t >> 1)
	e.Sec = b.sec
	if t&1 != 0 {
		if e.Nsec = b.col[colTimes].next32(); e.Nsec >= 1e9 {
			b.col[colTimes].bad = true
		}
	}
}

// end makes sure that the block was read to its end, and that nothing was missing.
func (b *blockReader) end() error {
	if len(b.digests) > 0 || b.textLeft != 0 || b.members != 0 {
		return corrupt("a block has more than its entries need")
	}
	for i := range b.col {
		if c := &b.col[i]; c.bad || c.i != len(c.b) {
			return corrupt("column %d is too short or too long", i)
		}
	}
	return nil
}

// column is a column that is being read. What is behind its end is 0, and bad is set.
type column struct {
	b   []byte
	i   int
	bad bool
}

// next reads a number.
func (c *column) next() uint64 {
	if c.i < len(c.b) && c.b[c.i] < 0x80 {
		c.i++
		return uint64(c.b[c.i-1])
	}
	return c.long()
}

// long is next for a number of several bytes.
func (c *column) long() uint64 {
	n, size := binary.Uvarint(c.b[c.i:])
	if size <= 0 {
		c.bad = true
		return 0
	}
	c.i += size
	return n
}

// next32 reads a number of 32 bits.
func (c *column) next32() uint32 {
	n := c.next()
	if n > 1<<32-1 {
		c.bad = true
		return 0
	}
	return uint32(n)
}

// number reads a size or an offset.
func (c *column) number() int64 {
	n := c.next()
	if n > maxNumber {
		c.bad = true
		return 0
	}
	return int64(n)
}

// take reads n bytes.
func (c *column) take(n int) []byte {
	if n > len(c.b)-c.i {
		c.bad = true
		return nil
	}
	c.i += n
	return c.b[c.i-n : c.i]
}

// bytes reads a length and that many bytes.
func (c *column) bytes() []byte {
	n := c.next()
	if n > uint64(len(c.b)) {
		c.bad = true
		return nil
	}
	return c.take(int(n))
}
