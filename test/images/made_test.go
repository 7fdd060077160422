package images

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
	"testing"
)

// TestWeights proves that weights are the same each time, differ between files,
// have about the deviation that is promised, and compress as little as real ones.
func TestWeights(t *testing.T) {
	read := func(seed int) []byte {
		b := make([]byte, 1<<20)
		if _, err := io.ReadFull(newWeightReader(seed), b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := read(0)
	if !bytes.Equal(b, read(0)) || bytes.Equal(b, read(1)) {
		t.Error("the same file differs, or different ones do not")
	}
	var sum, squares float64
	for i := 0; i < len(b); i += 2 {
		x := float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[i:])) << 16))
		sum += x
		squares += x * x
	}
	n := float64(len(b) / 2)
	if mean, deviation := sum/n, math.Sqrt(squares/n); math.Abs(mean) > 1e-4 || math.Abs(deviation-1./64) > 1./320 {
		t.Errorf("mean %g, deviation %g, want 0 and %g", mean, deviation, 1./64)
	}
	if share := compressed(t, b); share < 0.65 || share > 0.9 {
		t.Errorf("compressed to %.2f", share)
	}
}

// TestSmallText proves that small files keep their bounds and compress as source does.
func TestSmallText(t *testing.T) {
	rnd := rand.New(rand.NewChaCha8([32]byte{9}))
	var all []byte
	for range 200 {
		text := smallText(rnd)
		if len(text) < 1<<10 || len(text) > smallLargest {
			t.Fatalf("a file has %d bytes", len(text))
		}
		all = append(all, text...)
	}
	if share := compressed(t, all); share < 0.2 || share > 0.5 {
		t.Errorf("compressed to %.2f", share)
	}
}

func compressed(t *testing.T, b []byte) float64 {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return float64(out.Len()) / float64(len(b))
}

// TestOperations proves that every image of the benchmark is known, once, with
// operations that are told apart and each answer in one way.
func TestOperations(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range Core() {
		operations, err := Operations(name)
		if err != nil || len(operations) == 0 || seen[name] {
			t.Errorf("%s: %v, %v", name, operations, err)
		}
		seen[name] = true
		named := map[string]bool{}
		for _, o := range operations {
			if named[o.Name] || o.Name == "" || o.Spec.Repository != name || (o.Spec.Line == "") == (o.Spec.Path == "") {
				t.Errorf("%s: %+v", name, o)
			}
			named[o.Name] = true
		}
	}
	for _, name := range Smoke() {
		if !seen[name] {
			t.Errorf("%s is in the smoke tier alone", name)
		}
	}
	if _, err := Operations("nothing"); err == nil {
		t.Error("an unknown image has operations")
	}
}
