package toc

import (
	"bytes"
	"fmt"
)

// builder makes an Index from the entries of a TOC.
type builder struct {
	x         Index
	tocOffset int64
	entries   int // seen, chunks and dropped ones included
	text      int // bytes of names, targets and extended attributes so far
	paths     arena
	scratch   []byte
	// file is the regular file whose chunks are being read.
	file openFile
	// last is the member that was opened last.
	last openMember
}

// openFile is a file whose chunks are not complete yet.
type openFile struct {
	name    []byte // as in the TOC
	addr    int64
	size    int64
	covered int64 // by the chunks so far
	dropped bool  // the file is not part of the tree
	begun   bool  // it has a chunk in Index.Chunks
}

// openMember is a member whose chunks are not complete yet.
type openMember struct {
	open   bool
	offset int64
	inner  int64 // where the last chunk in it ended, dropped ones included
	index  int   // in Index.Members; -1 as long as it holds dropped content only
}

// newBuilder returns a builder for a TOC with size bytes of JSON.
func newBuilder(size, tocOffset int64) *builder {
	// A first guess at the number of entries, some 400 bytes of JSON each. The
	// size is not verified yet, so no more memory than a normal layer needs.
	const bytesPerEntry, normal = 400, 1 << 16
	guess := min(size/bytesPerEntry, normal)
	return &builder{
		x:         Index{Entries: make([]Entry, 0, guess), Chunks: make([]Chunk, 0, guess), Members: make([]Member, 0, guess)},
		tocOffset: tocOffset,
	}
}

// add takes the next entry of the TOC.
func (b *builder) add(e *rawEntry) error {
	if b.entries++; b.entries > maxEntries {
		return failf(ErrLimit, "it has more than %d entries", maxEntries)
	}
	if e.kind == kindChunk {
		if b.file.covered == b.file.size || !bytes.Equal(e.name, b.file.name) {
			return e.fail(ErrHostile, "a chunk of a file that is not being listed")
		}
		return b.chunk(e)
	}
	if err := b.closeFile(); err != nil {
		return err
	}
	entry, err := b.entry(e)
	if err != nil {
		return err
	}
	dropped := isOurs(entry.Path)
	if entry.Size > 0 {
		if err := b.openFile(e, dropped); err != nil {
			return err
		}
		entry.Addr = b.file.addr
	}
	if !dropped {
		b.x.Entries = append(b.x.Entries, entry)
	}
	return nil
}

// isOurs says whether a path is the format's own and not the image's (eStargz
// specification, "Prefetch landmark", "TOC").
func isOurs(path string) bool {
	return path == ".prefetch.landmark" || path == ".no.prefetch.landmark" || path == tocName
}

// entry checks and converts all of an entry but its content.
func (b *builder) entry(e *rawEntry) (Entry, error) {
	if e.kind == kindNone {
		return Entry{}, e.fail(ErrUnsupported, "its type is not known")
	}
	entry := Entry{
		Type: Type(e.kind), Mode: uint32(e.mode & 0o7777), UID: uint32(e.uid), GID: uint32(e.gid),
		Sec: e.sec, Nsec: e.nsec, Xattrs: e.xattrs,
	}
	var err error
	if entry.Path, err = b.path(e, e.name); err != nil {
		return Entry{}, err
	}
	if entry.Path == "" && entry.Type != Dir {
		return Entry{}, e.fail(ErrHostile, "the root is not a directory")
	}
	if err := checkOwner(e); err != nil {
		return Entry{}, err
	}
	switch entry.Type {
	case Reg:
		if e.size < 0 {
			return Entry{}, e.fail(ErrHostile, "the size is negative")
		}
		entry.Size = e.size
	case Symlink:
		if err := checkTarget(e); err != nil {
			return Entry{}, err
		}
		entry.Link = b.paths.str(e.link)
	case Hardlink:
		if entry.Link, err = b.path(e, e.link); err != nil {
			return Entry{}, err
		}
	case Char, Block:
		if e.devMajor < 0 || e.devMajor > maxDevMajor || e.devMinor < 0 || e.devMinor > maxDevMinor {
			return Entry{}, e.fail(ErrLimit, fmt.Sprintf("Linux has no device %d:%d", e.devMajor, e.devMinor))
		}
		entry.DevMajor, entry.DevMinor = uint32(e.devMajor), uint32(e.devMinor)
	default: // directories and pipes have nothing of their own
	}
	xattrs, err := checkXattrs(e)
	if err != nil {
		return Entry{}, err
	}
	if b.text += len(entry.Path) + len(entry.Link) + xattrs; b.text > maxText {
		return Entry{}, failf(ErrLimit, "its names, link targets and extended attributes have more than %d bytes", maxText)
	}
	return entry, nil
}

// checkOwner refuses owners and modes that no inode has.
func checkOwner(e *rawEntry) error {
	switch {
	case e.uid < 0 || e.gid < 0 || e.mode < 0:
		return e.fail(ErrHostile, "the owner or the mode is negative")
	case e.uid > maxID || e.gid > maxID:
		return e.fail(ErrLimit, "the owner does not fit 32 bits")
	}
	return nil
}

// path returns the clean form of a name.
func (b *builder) path(e *rawEntry, name []byte) (string, error) {
	clean, what, kind := cleanPath(b.scratch[:0], name)
	if kind != nil {
		return "", e.fail(kind, what)
	}
	b.scratch = clean
	return b.paths.str(clean), nil
}

// checkTarget refuses targets that no symlink has.
func checkTarget(e *rawEntry) error {
	switch {
	case len(e.link) == 0:
		return e.fail(ErrHostile, "a symlink without target")
	case len(e.link) > maxSymlink:
		return e.fail(ErrLimit, "the target of the symlink is too long")
	case bytes.IndexByte(e.link, 0) >= 0:
		return e.fail(ErrHostile, "the target of the symlink has a NUL")
	case !faithful(e.link):
		return e.fail(ErrUnsupported, notFaithful)
	}
	return nil
}

// checkXattrs refuses extended attributes that no inode of EROFS can hold. It
// returns how many bytes they take in memory: none, where they are an earlier
// entry's.
func checkXattrs(e *rawEntry) (int, error) {
	total := 0
	for name, value := range e.xattrs {
		switch n := []byte(name); {
		case name == "" || bytes.IndexByte(n, 0) >= 0:
			return 0, e.fail(ErrHostile, "an extended attribute has no name")
		case !faithful(n):
			return 0, e.fail(ErrUnsupported, notFaithful)
		case len(value) > maxXattrValue:
			return 0, e.fail(ErrLimit, fmt.Sprintf("an extended attribute of more than %d bytes", maxXattrValue))
		}
		total += len(name) + len(value) + xattrOverhead
	}
	if total > maxXattrTotal {
		return 0, e.fail(ErrLimit, fmt.Sprintf("extended attributes of more than %d bytes", maxXattrTotal))
	}
	if e.shared {
		return 0, nil
	}
	return total, nil
}

// openFile gives the regular file e its place and takes its first chunk.
func (b *builder) openFile(e *rawEntry, dropped bool) error {
	if e.size > maxFile {
		return e.fail(ErrLimit, "the file is too large")
	}
	b.file = openFile{name: append(b.file.name[:0], e.name...), addr: b.x.DataSize, size: e.size, dropped: dropped}
	if !dropped {
		b.x.DataSize += (e.size + BlockSize - 1) / BlockSize * BlockSize
		if b.x.DataSize > maxData {
			return e.fail(ErrLimit, "the layer has too much data")
		}
	}
	return b.chunk(e)
}

// closeFile checks that the chunks of the last file cover it.
func (b *builder) closeFile() error {
	if b.file.covered < b.file.size {
		return &Error{Kind: ErrHostile, Entry: string(b.file.name), What: "its chunks end before the file does"}
	}
	return nil
}

// chunk takes the next chunk of the open file.
func (b *builder) chunk(e *rawEntry) error {
	f := &b.file
	size := e.chunkSize
	if size == 0 {
		size = f.size - f.covered // "to the end of the file"
	}
	switch {
	case e.chunkOffset != f.covered:
		return e.fail(ErrHostile, fmt.Sprintf("a chunk begins at %d, the one before it ended at %d", e.chunkOffset, f.covered))
	case size < 0 || size > f.size-f.covered:
		return e.fail(ErrHostile, "a chunk leaves its file")
	case e.content == contentUnknown:
		return e.fail(ErrUnsupported, "a chunk of a type that is not known")
	case e.content == contentZeros:
		return b.zeros(e, size)
	case size > maxChunk:
		return e.fail(ErrLimit, fmt.Sprintf("a chunk of %d bytes, the limit is %d", size, maxChunk))
	case !e.hasDigest && (size < f.size || !e.useFileDigest()):
		return e.fail(ErrUnsupported, "a chunk without digest, so that nothing could be verified")
	}
	if err := b.place(e, size, f.dropped); err != nil {
		return err
	}
	if !f.dropped {
		b.x.Chunks = append(b.x.Chunks, Chunk{
			Addr: f.addr + f.covered, Size: size, Member: b.last.index, Inner: e.inner, Digest: e.chunkDigest,
			Begin: !f.begun,
		})
		f.begun = true
		b.x.Members[b.last.index].Count++
	}
	f.covered += size
	return nil
}

// zeros takes a chunk of size bytes that are zero. It is no chunk of the index: the
// address space is zero wherever it has none. The verified TOC says that they are zero,
// which is as good as a digest.
func (b *builder) zeros(e *rawEntry, size int64) error {
	// It has a member all the same, which is where the one before it ends.
	if err := b.place(e, 0, true); err != nil {
		return err
	}
	b.file.covered += size
	return nil
}

// place finds the member of a chunk of size bytes: the last one or the next. A chunk
// that is dropped is not read.
//
// A member's first chunk may begin at an inner offset: writers that put several
// small files into one member begin it with a tar header.
func (b *builder) place(e *rawEntry, size int64, dropped bool) error {
	m := &b.last
	switch {
	case e.offset < 0 || e.offset >= b.tocOffset:
		return e.fail(ErrHostile, "its content lies outside the blob's content")
	case e.inner < 0:
		return e.fail(ErrHostile, "the inner offset is negative")
	case e.inner > maxMember-size:
		return e.fail(ErrLimit, fmt.Sprintf("its content ends more than %d bytes into a member", maxMember))
	case m.open && e.offset < m.offset:
		return e.fail(ErrHostile, "its content lies before that of an earlier entry")
	case m.open && e.offset == m.offset && e.inner < m.inner:
		return e.fail(ErrHostile, "its content overlaps that of an earlier entry")
	}
	if !m.open || e.offset > m.offset {
		b.closeMember(e.offset)
		*m = openMember{open: true, offset: e.offset, index: -1}
	}
	m.inner = e.inner + size
	if m.index < 0 && !dropped {
		m.index = len(b.x.Members)
		b.x.Members = append(b.x.Members, Member{Offset: m.offset, First: len(b.x.Chunks)})
	}
	return nil
}

// closeMember ends the last member at the blob's offset end.
func (b *builder) closeMember(end int64) {
	if b.last.open && b.last.index >= 0 {
		b.x.Members[b.last.index].Size = end - b.last.offset
	}
}

// finish returns the index.
func (b *builder) finish() (*Index, error) {
	if err := b.closeFile(); err != nil {
		return nil, err
	}
	b.closeMember(b.tocOffset)
	return &b.x, nil
}
