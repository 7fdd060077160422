package profile

import (
	"context"
	"errors"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// Options of Make.
type Options struct {
	Merge MergeOptions
	Build BuildOptions
	// Keep, if set, says of a plan that the profile which the image has is good
	// enough: then nothing is built.
	Keep func(Plan) bool
}

// Made says what Make did.
type Made struct {
	// Image is the manifest's full name.
	Image   string          `json:"image"`
	Summary profile.Summary `json:"summary"`
	Pushed
	// Groups of the pack, and its size.
	Groups    int   `json:"groups"`
	PackBytes int64 `json:"packBytes"`
	// MemberBytes is what the same chunks take in the image.
	MemberBytes int64 `json:"memberBytes"`
	// Left is how many chunks did not fit into the budget.
	Left int `json:"left"`
	// FetchedBytes were read of the image's layers, in that many Requests.
	FetchedBytes int64 `json:"fetchedBytes"`
	Requests     int64 `json:"requests"`
	// Other, Unknown, Rare, Similarity and Differ are those of the Report.
	Other      int     `json:"other"`
	Unknown    int     `json:"unknown"`
	Rare       int     `json:"rare"`
	Similarity float64 `json:"similarity"`
	Differ     bool    `json:"differ"`
	// Kept says that Keep wanted no other profile.
	Kept bool `json:"kept,omitempty"`
}

// Make merges the samples of the platform manifest ref, builds the pack and
// pushes both. It costs nothing but reading the tables of contents where the newest profile is the same.
func Make(ctx context.Context, client *registry.Client, ref name.Digest, samples []profile.Sample, o Options) (m Made, err error) {
	im, err := Load(ctx, client, ref)
	if err != nil {
		return Made{}, err
	}
	wanted := SampleChunks(samples)
	if err := im.Locate(ctx, func(sum [32]byte) bool { return wanted[sum] }, false); err != nil {
		return Made{}, err
	}
	plan, r := Merge(samples, im, o.Merge)
	if r.Used == 0 || len(plan) == 0 {
		return Made{}, fault.New(fault.NotFound, nil, "none of the %d samples is of %s and has a chunk of its layers: start a container of this very image and record it", len(samples), ref)
	}
	if o.Keep != nil && o.Keep(plan) {
		return Made{Image: ref.String(), Kept: true}, nil
	}
	pack, err := Build(ctx, im, plan, o.Build)
	if err != nil {
		return Made{}, err
	}
	defer func() { err = errors.Join(err, pack.Close()) }()
	m = Made{
		Image: ref.String(), Summary: summarize(&r, pack), Groups: len(pack.Table.Groups), PackBytes: pack.Table.Size, MemberBytes: pack.MemberBytes,
		Left: pack.Left, FetchedBytes: pack.FetchedBytes, Requests: pack.Requests,
		Other: r.Other, Unknown: r.Unknown, Rare: r.Rare, Similarity: r.Similarity, Differ: r.Differ,
	}
	m.Pushed, err = Push(ctx, im, &pack.Table, pack.Upload(), m.Summary)
	return m, err
}

// summarize says what a pack is worth.
func summarize(r *Report, p *Pack) profile.Summary {
	s := profile.Summary{
		Samples: r.Used, Workloads: r.Workloads, HeldOut: r.HeldOut,
		Chunks: len(p.Plan), ContentBytes: p.Plan.ContentBytes(), PackBytes: p.Table.Size,
		Without: r.Without, With: r.With,
	}
	s.Coverage, s.Waste = r.Measure(p.Plan)
	return s
}

// Manifests sorts samples by the manifest that they are of.
func Manifests(samples []profile.Sample) map[string][]profile.Sample {
	all := make(map[string][]profile.Sample)
	for i := range samples {
		all[samples[i].Manifest] = append(all[samples[i].Manifest], samples[i])
	}
	return all
}
