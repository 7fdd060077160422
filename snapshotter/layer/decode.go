package layer

import (
	"crypto/sha256"
	"errors"
	"io"
)

// errInner says that chunks of a member overlap, which Check refuses.
var errInner = errors.New("chunks overlap in their member")

// decoded is the verified content of a member.
type decoded struct {
	buf    []byte   // the chunks one after another
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

// decode decompresses member m from r and checks every chunk. It reads no
// further than the last chunk: what follows in the member, or behind it, is
// tar headers and never touched. Any error is a *DigestError, also when r failed.
func (l *Layer) decode(m int, r io.Reader) (decoded, error) {
	x := &l.idx.Members[m]
	lim := l.o.Limits
	z := lim.gzip()
	defer lim.recycleGzip(z)
	d := decoded{buf: lim.buffer(l.content(m)), chunks: make([][]byte, x.Count)}
	fail := func(i int, got [32]byte, err error) (decoded, error) {
		lim.recycle(d.buf)
		return decoded{}, &DigestError{Layer: l.key, Chunk: i, Want: l.idx.Chunks[i].Digest, Got: got, Err: err}
	}
	if err := z.Reset(r); err != nil {
		return fail(x.First, [32]byte{}, err)
	}
	z.Multistream(false)
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
