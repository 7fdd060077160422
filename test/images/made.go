package images

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
)

const (
	weightFiles     = 8
	weightFileSize  = 256 << 20 // bytes
	weightsPerLayer = 2         // files
)

// weights has 2 GiB of a model's weights, which a program maps into memory. One
// operation reads all of them; the other, 5 % in 912 places: of each file six
// spans of 1 MiB, like single tensors, and 108 of 64 KiB, like rows of a table.
func weights() recipe {
	const program = `import mmap
import os
import random
import time
import zlib

MiB = 1 << 20
crc = size = places = 0
for name in sorted(os.listdir("/weights")):
    with open("/weights/" + name, "rb") as f:
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    if os.environ.get("READ") == "full":
        spans = [(at, MiB) for at in range(0, len(m), MiB)]
    else:
        rnd = random.Random(name)
        spans = [(n * MiB, MiB) for n in rnd.sample(range(len(m) // MiB), 6)]
        spans += [(int(rnd.random() * (len(m) // 4096 - 16)) * 4096, MiB // 16) for _ in range(108)]
    for at, n in spans:
        crc = zlib.crc32(m[at:at + n], crc)
        size += n
        places += 1
print("read", size // MiB, "MiB in", places, "places, crc %08x" % crc, flush=True)
while True:
    time.sleep(60)
`
	layers := []layerRecipe{base(), pythonLayer()}
	for first := 0; first < weightFiles; first += weightsPerLayer {
		layers = append(layers, layerRecipe{name: fmt.Sprintf("weights%d", first), made: weightsOf{first: first, count: weightsPerLayer, size: weightFileSize, gzip: gzip.HuffmanOnly}})
	}
	sparse := Spec{Repository: "ml-2g", Line: "read 102 MiB in 912 places, crc b1642312"}
	full := Spec{Repository: "ml-2g", Line: "read 2048 MiB in 2048 places, crc 5a02fc92"}
	return recipe{
		layers:     append(layers, pythonApp("ml-2g", program)),
		env:        pythonEnv(),
		entrypoint: []string{"python3", "/app/main.py"},
		spec:       sparse,
		operations: []Operation{{Name: "sparse", Env: []string{"READ=sparse"}, Spec: sparse}, {Name: "full", Env: []string{"READ=full"}, Spec: full}},
	}
}

// weightsOf is count files of size bytes, from the file number first on.
type weightsOf struct {
	first, count int
	size         int64
	gzip         int // level of compression
}

var _ content = weightsOf{}

// level is not the default one, which finds no repeats in weights and stores them as
// they are: the compressors of image builders code their uneven bytes, to 78 %.
func (c weightsOf) level() int { return c.gzip }

func (c weightsOf) write(_ context.Context, _ *builder, w *layerWriter) error {
	for n := c.first; n < c.first+c.count; n++ {
		name := fmt.Sprintf("weights/model-%05d-of-%05d.bin", n+1, weightFiles)
		if err := w.addStream(name, 0o644, c.size, newWeightReader(n)); err != nil {
			return err
		}
	}
	return nil
}

// weightReader gives numbers in bfloat16, little endian, for ever: those of a normal
// distribution with a deviation of about 2⁻⁶, whose sign and fraction are noise and whose
// exponent is not. That is what trained weights look like to a compressor.
type weightReader struct {
	src       *rand.ChaCha8
	exponents [256]uint16 // by a random byte; the field in its place
}

var _ io.Reader = (*weightReader)(nil)

func newWeightReader(seed int) *weightReader {
	// In 256ths, the share of a normal distribution between 2 and 4 deviations,
	// between 1 and 2, between 1/2 and 1, and so on.
	shares := []int{12, 70, 77, 47, 25, 13, 6, 3, 2, 1}
	const bias, deviation = 127, -6
	r := &weightReader{src: rand.NewChaCha8([32]byte{2, byte(seed)})}
	n := 0
	for i, share := range shares {
		for range share {
			r.exponents[n] = uint16(bias+deviation+1-i) << 7
			n++
		}
	}
	return r
}

// Read never fails. The length of p must be even, or half a number is lost.
func (r *weightReader) Read(p []byte) (int, error) {
	n, _ := r.src.Read(p) // it never fails
	for i := 0; i+1 < n; i += 2 {
		// One byte says which exponent; of the other, one bit is the sign and seven
		// are the fraction.
		x := r.exponents[p[i+1]] | uint16(p[i]&0x80)<<8 | uint16(p[i]&0x7f)
		p[i], p[i+1] = byte(x), byte(x>>8)
	}
	return n, nil
}

const (
	smallLayers      = 25
	smallDirectories = 24  // of each layer
	smallFiles       = 100 // of each directory
	smallLargest     = 8 << 10
)

// manySmall has 60 000 files of 1 to 8 KiB in 25 layers; its program walks all
// directories and reads every 33rd file.
func manySmall() recipe {
	const program = `import os
import time

paths = []
for top, directories, names in os.walk("/data"):
    directories.sort()
    paths += [(os.path.join(top, n)) for n in sorted(names) if os.stat(os.path.join(top, n)).st_size >= 1024]
total = 0
for path in paths[::33]:
    with open(path, "rb") as f:
        total += sum(f.read())
print("files", len(paths), "read", len(paths[::33]), "sum", total, flush=True)
while True:
    time.sleep(60)
`
	layers := []layerRecipe{base(), pythonLayer()}
	for n := range smallLayers {
		layers = append(layers, layerRecipe{name: fmt.Sprintf("small%02d", n), made: smallOf{part: n}})
	}
	return recipe{
		layers:     append(layers, pythonApp("many-small", program)),
		env:        pythonEnv(),
		entrypoint: []string{"python3", "/app/main.py"},
		spec:       Spec{Repository: "many-small", Line: "files 60000 read 1819 sum 723712967"},
	}
}

// smallOf is one layer of small files, in directories of its own.
type smallOf struct{ part int }

var _ content = smallOf{}

func (smallOf) level() int { return gzip.DefaultCompression }

func (c smallOf) write(_ context.Context, _ *builder, w *layerWriter) error {
	rnd := rand.New(rand.NewChaCha8([32]byte{3, byte(c.part)}))
	for d := range smallDirectories {
		for f := range smallFiles {
			text := smallText(rnd)
			name := fmt.Sprintf("data/part%02d/dir%02d/file%02d.txt", c.part, d, f)
			if err := w.addStream(name, 0o644, int64(len(text)), strings.NewReader(text)); err != nil {
				return err
			}
		}
	}
	return nil
}

// smallText is 1 to 8 KiB that compress as source code does, by three.
func smallText(rnd *rand.Rand) string {
	words := strings.Fields("return func if err nil != range for := string int byte struct type package import const var " +
		"name path size count index value result error file layer read write open close node list { } ( ) ==")
	size := smallLargest/8 + rnd.IntN(smallLargest*7/8)
	b := make([]byte, 0, size+32)
	for len(b) < size {
		if rnd.IntN(8) == 0 {
			b = strconv.AppendUint(b, rnd.Uint64N(1<<24), 36)
		} else {
			b = append(b, words[rnd.IntN(len(words))]...)
		}
		b = append(b, " \n\t "[rnd.IntN(4)])
	}
	return string(b[:size])
}
