package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// results is the content of out/demo.json. Sizes are in bytes, MB are 10^6.
type results struct {
	Images      []imageResult `json:"images"`
	Snapshotter struct {
		// RSSBytes is the most memory that the snapshotter's processes took at
		// the moment a container was ready.
		RSSBytes int64 `json:"rss"`
	} `json:"snapshotter"`
	Convert convertResult `json:"convert"`
}

type imageResult struct {
	Name string `json:"name"`
	// SizeBytes is the plain image, compressed, as a full pull fetches it.
	SizeBytes int64       `json:"size_bytes"`
	Eager     startResult `json:"eager"`
	Lazy      lazyResult  `json:"lazy"`
	// Ratio is eager seconds by lazy seconds.
	Ratio float64 `json:"ratio"`
}

// startResult is one start: seconds from the pull request to the first correct
// answer, and the bytes that had come over the link by then.
type startResult struct {
	Seconds   float64 `json:"seconds"`
	Bytes     int64   `json:"bytes"`
	RootMount string  `json:"root_mount"`
	rss       int64
}

type lazyResult struct {
	startResult
	// Fraction is Bytes by the size of the plain image.
	Fraction float64 `json:"fraction"`
}

type convertResult struct {
	// MBPerSecond is compressed source bytes by the time of the whole command,
	// pull and push included.
	MBPerSecond float64 `json:"mb_per_s"`
	Bytes       int64   `json:"bytes"`
	Seconds     float64 `json:"seconds"`
}

func (c *convertResult) add(bytes int64, took time.Duration) {
	c.Bytes += bytes
	c.Seconds += took.Seconds()
}

func (c *convertResult) finish() {
	if c.Seconds > 0 {
		c.MBPerSecond = mb(c.Bytes) / c.Seconds
	}
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

func (r results) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// table is what the demo prints.
func (r results) table(o options) (string, error) {
	var s strings.Builder
	fmt.Fprintf(&s, "\nFrom the pull request to the first correct answer, over %d Mbit/s with %v round trip, nothing cached:\n\n", o.mbits, o.rtt)
	w := tabwriter.NewWriter(&s, 0, 0, 2, ' ', tabwriter.AlignRight)
	lines := "image\tsize MB\teager s\tlazy s\tsooner\teager MB\tlazy MB\tfetched\tlazy root\t\n"
	for _, i := range r.Images {
		lines += fmt.Sprintf("%s\t%.1f\t%.2f\t%.2f\t%.1fx\t%.1f\t%.1f\t%.0f %%\t%s\t\n", i.Name, mb(i.SizeBytes),
			i.Eager.Seconds, i.Lazy.Seconds, i.Ratio, mb(i.Eager.Bytes), mb(i.Lazy.Bytes), 100*i.Lazy.Fraction, i.Lazy.RootMount)
	}
	if _, err := io.WriteString(w, lines); err != nil {
		return "", err
	}
	if err := w.Flush(); err != nil {
		return "", err
	}
	fmt.Fprintf(&s, "\nThe snapshotter took %.0f MB of memory; images were converted at %.0f MB/s.\n", mb(r.Snapshotter.RSSBytes), r.Convert.MBPerSecond)
	return s.String(), nil
}

// judge says what a lazy start did not keep of its promise.
func (r results) judge() error {
	var errs []error
	for _, i := range r.Images {
		if i.Lazy.RootMount != "overlay on erofs" {
			errs = append(errs, fmt.Errorf("%s was not lazy: its root is %s, not overlay on erofs (see the snapshotter's log)", i.Name, i.Lazy.RootMount))
		}
		if i.Lazy.Fraction >= 0.5 {
			errs = append(errs, fmt.Errorf("%s fetched %.0f %% of the image before it was ready: half or more", i.Name, 100*i.Lazy.Fraction))
		}
		if i.Lazy.Seconds >= i.Eager.Seconds {
			errs = append(errs, fmt.Errorf("%s started lazily in %.2f s, eagerly in %.2f s: no sooner", i.Name, i.Lazy.Seconds, i.Eager.Seconds))
		}
	}
	return errors.Join(errs...)
}
