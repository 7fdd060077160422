package layer

import (
	"context"
	"io"
	"testing"

	"github.com/apparate/apparate/snapshotter/toc"
)

// far is a blob whose registry is as far away as it says.
type far int64

func (far) Open(context.Context, int64, int64) (io.ReadCloser, error) { return nil, io.EOF }
func (far) Size() int64                                               { return 1 }
func (far) Close() error                                              { return nil }
func (f far) Worth() int64                                            { return int64(f) }
func (far) Line() (int64, float64)                                    { return 0, 0 }

// TestCoalesce: requests grow with what asking costs, but less within a huge file: of
// that little more is fetched than is read, until it is read in order.
func TestCoalesce(t *testing.T) {
	const chunk, small, huge = 256 << 10, 16, 400
	idx := &toc.Index{DataSize: chunk * (small + huge)}
	for i := range small + huge {
		idx.Chunks = append(idx.Chunks, toc.Chunk{Addr: int64(i) * chunk, Size: chunk, Member: i, Begin: i <= small})
		idx.Members = append(idx.Members, toc.Member{Offset: int64(i) * 100_000, Size: 100_000, First: i, Count: 1})
	}
	for _, test := range []struct {
		worth, coalesce, addr, want int64
	}{
		{0, 0, 0, minCoalesce},
		{1 << 10, 0, 0, minCoalesce},
		{1 << 20, 0, 0, 1 << 20},
		{1 << 30, 0, chunk, maxCoalesce},
		{1 << 20, 0, chunk * small, hugeCoalesce},
		{3 << 20, 0, chunk * small, 384 << 10},
		{1 << 30, 0, chunk * small, minCoalesce},
		{1 << 20, 0, chunk*(small+huge) - 1, hugeCoalesce},
		{1 << 30, 4096, 0, 4096},
		{1 << 30, 4096, chunk * small, 4096},
		{1 << 30, -1, 0, 0},
	} {
		l := New("test", idx, far(test.worth), nil, Options{Coalesce: test.coalesce})
		if got := l.coalesce(test.addr); got != test.want {
			t.Errorf("a round trip is worth %d bytes, Coalesce %d: %d bytes at %d, want %d", test.worth, test.coalesce, got, test.addr, test.want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
