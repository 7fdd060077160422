package encode

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// Names that eStargz reserves in the root of a layer (eStargz specification,
// "TOC" and "Prioritized Files and Landmark Files").
const (
	TOCName            = "stargz.index.json"
	PrefetchLandmark   = ".prefetch.landmark"
	NoPrefetchLandmark = ".no.prefetch.landmark"
)

// Reserved says whether the tar entry of that name belongs to the eStargz format
// and not to the file tree.
func Reserved(name string) bool {
	switch CleanName(name) {
	case TOCName, PrefetchLandmark, NoPrefetchLandmark:
		return true
	}
	return false
}

// CleanName returns the path that a tar name means, relative to the root and
// without slashes at its ends; "" is the root.
func CleanName(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// packer cuts the tar into members.
type packer struct {
	p     *pipeline
	o     Options
	room  int // how long a member's raw may get
	names *names
	m     *member // being filled; nil when none is
	// group says that more content may join m: m begins with content, and no
	// chunk border was forced behind it.
	group bool
	pos   int64 // bytes of tar put so far

	window []byte // of a file, as long as a chunk
	probe  *gzip.Writer
	probed bytes.Buffer
}

func newPacker(p *pipeline, o Options) *packer {
	return &packer{
		p: p, o: o, names: newNames(), window: make([]byte, o.ChunkSize),
		room: int(max(o.ChunkSize, o.GroupSize)) + tailSize,
	}
}

// pack reads the tar to its end and sends all of it.
func (k *packer) pack(src io.Reader) error {
	r := newReader(src)
	for {
		h, raw, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := k.one(r, h, raw); err != nil {
			return err
		}
	}
	if err := k.pad(); err != nil {
		return err
	}
	if err := k.names.check(); err != nil {
		return err
	}
	if k.m != nil {
		k.seal()
	}
	return nil
}

// one packs the entry of h, whose raw header blocks are given.
func (k *packer) one(r *reader, h *tar.Header, raw []byte) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		// Runtimes ignore these; they stay in the tar and are no entry.
		return k.put(raw)
	}
	e, err := newEntry(h)
	if err != nil {
		return err
	}
	if Reserved(h.Name) {
		if err := k.pad(); err != nil {
			return err
		}
		return r.drop(h)
	}
	if err := k.names.add(h, h.Size > k.o.ChunkSize); err != nil {
		return err
	}
	if err := k.put(raw); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return k.add(item{entry: e})
	}
	return k.content(r, &file{entry: e, size: h.Size})
}

// content packs a file's bytes, chunk by chunk.
func (k *packer) content(r *reader, f *file) error {
	dense := k.o.ChunkSize
	if f.size > k.o.ChunkSize { // what is one chunk stays one
		dense = denseChunk(f.size, k.o.ChunkSize)
	}
	for left := f.size; left > 0; {
		window := k.window[:min(left, k.o.ChunkSize)]
		if err := r.payload(window); err != nil {
			return err
		}
		size, group := len(window), k.o.GroupSize
		if dense < k.o.ChunkSize {
			is, err := k.isDense(window)
			if err != nil {
				return err
			}
			if is {
				size, group = int(dense), 0
			}
		}
		for chunk := range slices.Chunk(window, size) {
			left -= int64(len(chunk))
			if err := k.piece(f, chunk, group, left == 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// piece packs bytes of a file as one chunk. It joins the content before it in a member
// of up to group bytes.
func (k *packer) piece(f *file, chunk []byte, group int64, last bool) error {
	// Readers find the end of a member by the next piece without an inner
	// offset, so content joins a member only behind other content.
	if k.m != nil && (!k.group || int64(len(k.m.raw)+len(chunk)) > group) {
		k.seal()
	}
	if err := k.open(); err != nil {
		return err
	}
	k.group = true
	k.m.items = append(k.m.items, item{piece: len(k.m.pieces)})
	k.m.pieces = append(k.m.pieces, piece{file: f, start: len(k.m.raw), len: len(chunk), last: last})
	k.m.raw = append(k.m.raw, chunk...)
	k.pos += int64(len(chunk))
	return nil
}

// put appends bytes of the tar that are no content.
func (k *packer) put(b []byte) error {
	for len(b) > 0 {
		if k.m != nil && len(k.m.raw) == k.room {
			k.seal()
		}
		if err := k.open(); err != nil {
			return err
		}
		n := min(len(b), k.room-len(k.m.raw))
		k.m.raw = append(k.m.raw, b[:n]...)
		k.pos += int64(n)
		b = b[n:]
	}
	return nil
}

// pad fills up the last entry's content to a whole block, where the archive's
// own padding is missing or goes away with an entry.
func (k *packer) pad() error {
	return k.put(make([]byte, padding(k.pos)))
}

// add notes an entry without content in the member that holds its header.
func (k *packer) add(i item) error {
	if err := k.open(); err != nil {
		return err
	}
	k.m.items = append(k.m.items, i)
	return nil
}

// open makes sure that a member is being filled.
func (k *packer) open() error {
	if k.m != nil {
		return nil
	}
	m, err := k.p.take()
	if err != nil {
		return err
	}
	if cap(m.raw) < k.room {
		m.raw = make([]byte, 0, k.room)
	}
	k.m, k.group = m, false
	return nil
}

// seal sends the member on its way.
func (k *packer) seal() {
	k.p.send(k.m)
	k.m = nil
}
