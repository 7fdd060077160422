package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/test/link"
)

// Results is the content of out/bench.json: all that was measured, from which every
// table is derived. Sizes are bytes, times seconds.
type Results struct {
	Machine  Machine   `json:"machine"`
	Tier     string    `json:"tier"`
	Began    time.Time `json:"began"`
	Took     float64   `json:"took"`
	Networks []Network `json:"networks"`
	// Peers are the versions of what we compare ourselves with, by arm.
	Peers  map[string]string `json:"peers"`
	Images []Image           `json:"images"`
	Runs   []Run             `json:"runs"`
	Bursts []Burst           `json:"bursts,omitempty"`
	Steady []Steady          `json:"steady,omitempty"`
	// Left names what was not measured, and why.
	Left []string `json:"left,omitempty"`
}

// Machine describes where the figures come from.
type Machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	Memory     int64  `json:"memory"`
	Kernel     string `json:"kernel"`
	Disk       string `json:"disk"` // the file system of everything
	Go         string `json:"go"`
	Containerd string `json:"containerd"`
	Runc       string `json:"runc"`
	Commit     string `json:"commit"`
}

// Network is one shaped network and what it was found to be.
type Network struct {
	Name     string        `json:"name"`
	Shape    link.Shape    `json:"shape"`
	Measured link.Measured `json:"measured"`
}

// Image is one image that is started, and what was made of it.
type Image struct {
	Name   string `json:"name"`
	Layers int    `json:"layers"`
	// Size is what a full pull of the plain image fetches.
	Size int64 `json:"size"`
	// Variants are what was made of it for arms, by their names.
	Variants map[string]Variant `json:"variants"`
	// Pack is how large the image's profile is, and Profile what it says of itself.
	Pack    int64            `json:"pack,omitempty"`
	Profile *profile.Summary `json:"profile,omitempty"`
}

// Variant is an image as one arm wants it.
type Variant struct {
	Tag string `json:"tag"`
	// Size is what a full pull of it fetches.
	Size int64 `json:"size"`
	// Seconds that making it took, pull and push included; 0 where an earlier call with
	// the same --state had made it.
	Seconds float64 `json:"seconds"`
}

// Run is one start. Where Error is set, the other figures are those until then.
type Run struct {
	Image   string `json:"image"`
	Arm     string `json:"arm"`
	Network string `json:"network,omitempty"` // empty where none is used
	Round   int    `json:"round"`
	Error   string `json:"error,omitempty"`
	// Began is when the image was asked for.
	Began time.Time `json:"began"`
	// Seconds from the request to the first correct answer, of them Pull until the
	// pull had ended.
	Seconds float64 `json:"seconds"`
	Pull    float64 `json:"pull"`
	// Traffic is what had come from the registry by then.
	Traffic link.Counts `json:"traffic"`
	// CPU are seconds of the processor until then: the snapshotter's daemon,
	// containerd with what it ran, and the whole machine, registry and relay included;
	// Stolen is what other machines on the same hardware took of it.
	CPU struct {
		Daemon     float64 `json:"daemon"`
		Containerd float64 `json:"containerd"`
		Machine    float64 `json:"machine"`
		Stolen     float64 `json:"stolen"`
	} `json:"cpu"`
	// PeakRSS is the most memory of the daemon's processes until then.
	PeakRSS int64 `json:"peak_rss"`
	// IdleRSS is what they took before the image was asked for.
	IdleRSS int64 `json:"idle_rss"`
	// Root is what the container's root really was, NotLazy how many layers were
	// pulled in full where they should not have been.
	Root    string `json:"root"`
	NotLazy int    `json:"not_lazy"`
	// Starts is the daemon's own account, Metrics its counters.
	Starts  json.RawMessage    `json:"starts,omitempty"`
	Metrics map[string]float64 `json:"metrics,omitempty"`
}

// Burst is many starts at once on one node.
type Burst struct {
	Scenario string  `json:"scenario"`
	Arm      string  `json:"arm"`
	Network  string  `json:"network"`
	Round    int     `json:"round"`
	Error    string  `json:"error,omitempty"`
	Starts   int     `json:"starts"`
	Seconds  float64 `json:"seconds"` // until the last was ready
	First    float64 `json:"first"`   // until the first was
	Bytes    int64   `json:"bytes"`
	Requests int64   `json:"requests"`
	PeakRSS  int64   `json:"peak_rss"`
}

// Steady is one measurement on an image that is all local.
type Steady struct {
	Arm   string `json:"arm"`
	Image string `json:"image"`
	Round int    `json:"round"`
	Error string `json:"error,omitempty"`
	// Seconds by the name of what was done.
	Seconds map[string]float64 `json:"seconds"`
}

// readResults reads the results that an earlier run has written.
func readResults(file string) (*Results, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r Results
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &r, nil
}

func (r *Results) write(file string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return writeFile(file, append(b, '\n'))
}

// writeFile puts a whole file into place, and makes its directory.
func writeFile(file string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	tmp := file + ".partial"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, file)
}
