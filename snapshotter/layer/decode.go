package layer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/snapshotter/inflate"
	"github.com/apparate/apparate/snapshotter/toc"
)

// errInner says that chunks of a member overlap, which Check refuses.
var errInner = errors.New("chunks overlap in their member")

// decoded is the verified content of a member.
type decoded struct {
	buf    []byte   // the chunks one after another, or all of the member
	chunks [][]byte // parts of buf, in the order of toc.Index.Chunks
}

// content is how many bytes the chunks of a member have.
func (l *Layer) content(m int) int64 {
	x := &l.idx.Members[m]
	n := int64(0)
	for i := x.First; i < x.First+x.Count; i++ {
		n += l.idx.Chunks[i].Size
	}
	return n
}

// maxGaps is how many bytes of a member that belong to no chunk may be decompressed with
// the chunks into memory. The converter's have a tar header for each file.
const maxGaps = 1 << 20

// room is how much memory the content of member m takes once it is decompressed. atOnce
// says that it is all of the member to the end of its last chunk, and not only the chunks.
func (l *Layer) room(m int) (n int64, atOnce bool) {
	x := &l.idx.Members[m]
	n = l.content(m)
	if l.idx.Compression != toc.Gzip || x.Count == 0 {
		return n, false
	}
	last := &l.idx.Chunks[x.First+x.Count-1]
	if all := last.Inner + last.Size; all >= n && all-n <= maxGaps {
		return all, true
	}
	return n, false
}

// decodeBuffered is decode for a member that is in memory, and takes the room that room
// says.
func (l *Layer) decodeBuffered(m int, raw []byte, room int64, atOnce bool) (decoded, error) {
	if atOnce {
		if d, ok := l.inflate(m, room, raw); ok {
			return d, nil
		}
		// Whether it is damaged, and how, is for the library to say.
	}
	return l.decode(m, bytes.NewReader(raw))
}

// inflate decompresses the first n bytes of member m and checks every chunk.
func (l *Layer) inflate(m int, n int64, raw []byte) (d decoded, ok bool) {
	x := &l.idx.Members[m]
	lim := l.o.Limits
	d = decoded{buf: lim.buffer(n), chunks: make([][]byte, x.Count)}
	z, _ := lim.inflaters.Get().(*inflate.Decoder)
	if z == nil {
		z = new(inflate.Decoder)
	}
	defer lim.inflaters.Put(z)
	ok = z.Gunzip(d.buf, raw) == nil
	at := int64(0)
	for k := 0; ok && k < x.Count; k++ {
		c := &l.idx.Chunks[x.First+k]
		if ok = c.Inner >= at; ok {
			at = c.Inner + c.Size
			d.chunks[k] = d.buf[c.Inner:at:at]
			ok = sha256.Sum256(d.chunks[k]) == c.Digest
		}
	}
	if !ok {
		lim.recycle(d.buf)
	}
	return d, ok
}

// decode decompresses member m from r and checks every chunk. It reads no
// further than the last chunk: what follows in the member, or behind it, is
// tar headers and never touched. Any error is a *DigestError, also when r failed.
func (l *Layer) decode(m int, r io.Reader) (decoded, error) {
	x := &l.idx.Members[m]
	lim := l.o.Limits
	d := decoded{buf: lim.buffer(l.content(m)), chunks: make([][]byte, x.Count)}
	fail := func(i int, got [32]byte, err error) (decoded, error) {
		lim.recycle(d.buf)
		return decoded{}, &DigestError{Layer: l.key, Chunk: i, Want: l.idx.Chunks[i].Digest, Got: got, Err: err}
	}
	z, done, err := lim.decompress(l.idx.Compression, r)
	if err != nil {
		return fail(x.First, [32]byte{}, err)
	}
	defer done()
	at, free := int64(0), d.buf
	for k := range d.chunks {
		c := &l.idx.Chunks[x.First+k]
		p := free[:c.Size:c.Size]
		free = free[c.Size:]
		err := errInner
		if c.Inner >= at {
			_, err = io.CopyN(io.Discard, z, c.Inner-at)
		}
		if err == nil {
			_, err = io.ReadFull(z, p)
		}
		if err != nil {
			return fail(x.First+k, [32]byte{}, err)
		}
		if got := sha256.Sum256(p); got != c.Digest {
			return fail(x.First+k, got, nil)
		}
		at = c.Inner + c.Size
		d.chunks[k] = p
	}
	return d, nil
}

// decompress returns what r holds, until done is called. Behind a gzip member it ends;
// behind a zstd frame it may go on with the next one, as other readers of zstd:chunked do.
func (x *Limits) decompress(c toc.Compression, r io.Reader) (z io.Reader, done func(), err error) {
	if c == toc.Zstd {
		d, _ := x.frames.Get().(*zstd.Decoder)
		if d == nil {
			// No goroutines of its own, so that one that is dropped needs no Close. Chunks
			// have digests, a second checksum says nothing.
			d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(toc.MaxZstdWindow), zstd.IgnoreChecksum(true))
		}
		if err == nil {
			err = d.Reset(r)
		}
		if err != nil {
			return nil, nil, err
		}
		return d, func() {
			_ = d.Reset(nil) // lets go of r
			x.frames.Put(d)
		}, nil
	}
	g, _ := x.readers.Get().(*gzip.Reader)
	if g == nil {
		g = new(gzip.Reader)
	}
	if err := g.Reset(r); err != nil {
		x.readers.Put(g)
		return nil, nil, err
	}
	g.Multistream(false)
	return g, func() { x.readers.Put(g) }, nil
}
