package layer_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/apparate/apparate/snapshotter/layer"
)

// TestSweep: requests become longer while readers go through small files in the order of the
// blob, and stay what they are where readers go elsewhere, or through places of a huge file.
func TestSweep(t *testing.T) {
	const files, size = 1024, 16 << 10
	small := build(t, plan{seed: 1, files: slices.Repeat([]int64{size}, files), chunk: size, group: size, stored: true})
	huge := build(t, plan{seed: 2, files: []int64{files * 70 << 10}, chunk: 70 << 10, stored: true})
	inOrder := make([]int64, files)
	for i := range inOrder {
		inOrder[i] = int64(i) * size
	}
	for _, test := range []struct {
		name  string
		w     *world
		reads []int64 // addresses
		most  int     // requests
		least int64   // of the longest one, in bytes
	}{
		// 16 files a request would be 64 of them; 2 of these, then twice, 4, 8 and 16 times as many.
		{"in order", small, inOrder, 10, 15 * 16 * size},
		{"two in turn", small, turns(inOrder[:files/2], inOrder[files/2:]), 14, 15 * 16 * size},
		{"backwards", small, backwards(inOrder), 1024, 0},
		{"here and there", small, shuffled(inOrder[:64:64], 3), 64, 0},
		{"in places of a huge file", huge, every(70<<10, 5, 100), 100, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := new(blob)
			l, _ := open(t, test.w, b, layer.Options{Coalesce: 16*size + 16<<10})
			for _, at := range test.reads {
				if err := test.w.read(t, l, at, 100); err != nil {
					t.Fatal(err)
				}
			}
			var longest int64
			asked := b.asked()
			for _, s := range asked {
				longest = max(longest, s.n)
			}
			t.Logf("%d requests, the longest of %d KiB", len(asked), longest>>10)
			if len(asked) > test.most {
				t.Errorf("%d requests, want %d", len(asked), test.most)
			}
			if longest < test.least || test.least == 0 && longest > 17*(size+1<<10) {
				t.Errorf("the longest request is of %d bytes, want %d", longest, test.least)
			}
		})
	}
}

// turns takes of a and b in turn.
func turns(a, b []int64) []int64 {
	all := make([]int64, 0, len(a)+len(b))
	for i := range a {
		all = append(all, a[i], b[i])
	}
	return all
}

func backwards(a []int64) []int64 {
	b := slices.Clone(a)
	slices.Reverse(b)
	return b
}

func shuffled(a []int64, seed uint64) []int64 {
	b := slices.Clone(a)
	rand.New(rand.NewPCG(seed, 4)).Shuffle(len(b), func(i, j int) { b[i], b[j] = b[j], b[i] })
	return b
}

// every is n addresses, so many pieces apart.
func every(piece int64, apart, n int) []int64 {
	a := make([]int64, n)
	for i := range a {
		a[i] = int64(i*apart) * piece
	}
	return a
}
