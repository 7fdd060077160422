package encode

import "github.com/klauspost/compress/gzip"

const (
	// minDenseChunk is the least chunk of content in which nothing repeats itself, and
	// maxDenseChunks how many of them a file is cut into, as nodes keep each in memory.
	minDenseChunk  = 64 << 10
	maxDenseChunks = 4096
	// probeSize is how much of a chunk tells what the whole is like.
	probeSize = 32 << 10
)

// denseChunk is the size of the chunks of a file of the given size where its content is
// dense. Weights of a model are, and archives, and media: compression gains nothing from
// long chunks, and who reads them here and there fetches less with short ones.
func denseChunk(file, chunk int64) int64 {
	size := int64(minDenseChunk)
	for size < chunk && file > size*maxDenseChunks {
		size *= 2
	}
	return min(size, chunk)
}

// isDense says whether nothing in window repeats itself: the quickest level saves less
// than an eighth in its middle.
func (k *packer) isDense(window []byte) (bool, error) {
	if len(window) <= minDenseChunk {
		return false, nil
	}
	if k.probe == nil {
		zw, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
		if err != nil {
			return false, err
		}
		k.probe = zw
	}
	middle := window[(len(window)-probeSize)/2:][:probeSize]
	if err := into(k.probe, &k.probed, middle); err != nil {
		return false, err
	}
	return k.probed.Len() >= probeSize/8*7, nil
}
