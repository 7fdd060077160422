package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Limits of the samples that are read at once.
const (
	// MaxSamples is how many samples one list may have.
	MaxSamples = 256
	// MaxSampleLayers is how many layers a sample may have.
	MaxSampleLayers = 1024
	// MaxSamplesBytes is the longest JSON of a list of samples.
	MaxSamplesBytes = 64 << 20
)

// Sample is what one start of one image on one node read. Its JSON form is what
// the daemon serves; Chunks is base64 there, as encoding/json has it.
type Sample struct {
	// Image is the repository with its host, without tag or digest.
	Image string `json:"image"`
	// Manifest is the digest of the platform manifest.
	Manifest string `json:"manifest"`
	// Platform, such as "linux/amd64".
	Platform string `json:"platform,omitempty"`
	// Workload is "namespace/kind/name" where known, else "".
	Workload string `json:"workload,omitempty"`
	// Started is when the image was mounted.
	Started time.Time `json:"started"`
	// DurationMillis is how long was recorded.
	DurationMillis int64 `json:"durationMillis"`
	// ReadyMillis is when the container was ready, since it was created; 0 if not known.
	ReadyMillis int64 `json:"readyMillis,omitempty"`
	// Profile is the digest of the pack that was used, "" for none.
	Profile string `json:"profile,omitempty"`
	// Layers that were read of, in the manifest's order.
	Layers []SampleLayer `json:"layers"`
	// Outcome is what the start cost.
	Outcome Outcome `json:"outcome"`
}

// SampleLayer is what a start read of one layer.
type SampleLayer struct {
	// Digest of the layer's blob.
	Digest string `json:"digest"`
	// TOCDigest is the layer's AnnotationTOCDigest.
	TOCDigest string `json:"tocDigest,omitempty"`
	// Chunks are the SHA-256 of the chunks, 32 bytes each, in the order of first use.
	Chunks []byte `json:"chunks"`
	// At is when each chunk was first used, in milliseconds since the container was created, 0 for before.
	At []uint32 `json:"at"`
}

// Outcome is what a start cost: how many requests it sent to the registry, the
// bytes it fetched by range and of a pack, and how many reads waited for how
// long, each wait counted.
type Outcome struct {
	Requests     int64 `json:"requests"`
	FetchedBytes int64 `json:"fetchedBytes"`
	PackBytes    int64 `json:"packBytes"`
	WaitedReads  int64 `json:"waitedReads"`
	WaitMillis   int64 `json:"waitMillis"`
}

// Len returns how many chunks the layer's start used.
func (l *SampleLayer) Len() int {
	return len(l.Chunks) / 32
}

// Chunk returns the digest of the i-th chunk and when it was first used.
func (l *SampleLayer) Chunk(i int) (sum [32]byte, at uint32) {
	copy(sum[:], l.Chunks[32*i:])
	return sum, l.At[i]
}

// Add appends a chunk and when it was first used.
func (l *SampleLayer) Add(sum [32]byte, at uint32) {
	l.Chunks = append(l.Chunks, sum[:]...)
	l.At = append(l.At, at)
}

// Check says whether the sample is whole and within the limits of this package;
// a sample of any origin that passes can be walked with Len and Chunk.
func (s *Sample) Check() error {
	if s.Image == "" || !strings.HasPrefix(s.Manifest, digestPrefix) {
		return fmt.Errorf("the sample names no image and manifest (image %q, manifest %q)", shorten(s.Image), shorten(s.Manifest))
	}
	for _, text := range []string{s.Image, s.Manifest, s.Platform, s.Workload, s.Profile} {
		if len(text) > 1024 {
			return fmt.Errorf("the sample has a name of %d bytes", len(text))
		}
	}
	if len(s.Layers) > MaxSampleLayers {
		return fmt.Errorf("the sample of %s has %d layers, and %d is the limit", s.Image, len(s.Layers), MaxSampleLayers)
	}
	chunks := 0
	for i := range s.Layers {
		l := &s.Layers[i]
		if len(l.Chunks)%32 != 0 || len(l.Chunks)/32 != len(l.At) {
			return fmt.Errorf("layer %d of the sample of %s has %d bytes of digests and %d times", i, s.Image, len(l.Chunks), len(l.At))
		}
		if chunks += l.Len(); chunks > MaxChunks {
			return fmt.Errorf("the sample of %s has more than %d chunks", s.Image, MaxChunks)
		}
	}
	return nil
}

func shorten(s string) string {
	return s[:min(len(s), 100)]
}

// DecodeSamples reads samples from JSON, a list of them or a single one, and
// checks each. Only a list that is wholly good is returned.
func DecodeSamples(b []byte) ([]Sample, error) {
	if len(b) > MaxSamplesBytes {
		return nil, fmt.Errorf("the samples take %d bytes, and %d is the limit", len(b), MaxSamplesBytes)
	}
	var list []Sample
	if trimmed := bytes.TrimLeft(b, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		list = make([]Sample, 1)
		if err := json.Unmarshal(b, &list[0]); err != nil {
			return nil, fmt.Errorf("not a sample: %w", err)
		}
	} else if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("not a list of samples: %w", err)
	}
	if len(list) > MaxSamples {
		return nil, fmt.Errorf("%d samples at once, and %d is the limit", len(list), MaxSamples)
	}
	for i := range list {
		if err := list[i].Check(); err != nil {
			return nil, err
		}
	}
	return list, nil
}
