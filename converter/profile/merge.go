package profile

import (
	"bytes"
	"cmp"
	"math"
	"slices"

	"github.com/apparate/apparate/api/profile"
)

// MergeOptions say how samples become a plan; zero values stand for the defaults.
type MergeOptions struct {
	// Share (0 to 1) of the samples that must have a chunk for it to be kept:
	// DefaultShare by default. It is rounded up to whole samples.
	Share float64
	// Similar is the similarity (Jaccard index of the sets of chunks, 0 to 1)
	// above which workloads count as one: DefaultSimilar by default.
	Similar float64
	// Samples is how many samples are used at most, the newest of them:
	// DefaultSamples by default.
	Samples int
}

// The defaults of MergeOptions.
const (
	DefaultShare   = 0.5
	DefaultSimilar = 0.5
	DefaultSamples = 32
)

// maxWorkloads is how many workloads may each bring chunks of their own; the
// newest starts are looked at first.
const maxWorkloads = 4

// Planned is a chunk that a pack shall have.
type Planned struct {
	// Layer is the digest of a layer that has it.
	Layer string
	Sum   [32]byte
	// Size of its content in bytes.
	Size int64
	// At is when it is needed, in milliseconds since the container was created.
	At uint32
}

// Plan lists chunks in the order in which they are needed, each once.
type Plan []Planned

// ContentBytes is how many bytes the plan's chunks have.
func (p Plan) ContentBytes() int64 {
	n := int64(0)
	for i := range p {
		n += p[i].Size
	}
	return n
}

// Report says how a plan came about.
type Report struct {
	// Used samples were merged, HeldOut (0 or 1) measured the plan, Other were of
	// other manifests, broken or too old, and left out.
	Used, HeldOut, Other int
	// Unknown is how many chunks of the samples no layer of the image lists, and
	// Rare how many too few samples had.
	Unknown, Rare int
	// Workloads is how many different ones the used samples are of. Similarity is
	// the least that two of them have; 1 for a single one. Where they Differ, a chunk is
	// kept that a share of the samples of any one of them has.
	Workloads  int
	Similarity float64
	Differ     bool
	// Without and With are the medians of what the used starts cost without and
	// with a profile, nil for none.
	Without, With *profile.Outcome

	held map[[32]byte]int64 // what the held-out sample read, and how many bytes
}

// Measure says what share of the bytes that the held-out start read are in the
// plan, and what share of the plan's it did not read; both are 0 if there is none.
func (r *Report) Measure(p Plan) (coverage, waste float64) {
	all, hit := int64(0), int64(0)
	for _, size := range r.held {
		all += size
	}
	if all == 0 {
		return 0, 0
	}
	for i := range p {
		if _, ok := r.held[p[i].Sum]; ok {
			hit += p[i].Size
		}
	}
	if total := p.ContentBytes(); total > 0 {
		waste = 1 - float64(hit)/float64(total)
	}
	return float64(hit) / float64(all), waste
}

// start is a sample with the chunks that the image knows.
type start struct {
	sample *profile.Sample
	at     map[[32]byte]uint32
}

// SampleChunks is the set of all chunks that the samples name, for Image.Locate.
func SampleChunks(samples []profile.Sample) map[[32]byte]bool {
	all := make(map[[32]byte]bool)
	for i := range samples {
		for j := range samples[i].Layers {
			l := &samples[i].Layers[j]
			for k := range l.Len() {
				sum, _ := l.Chunk(k)
				all[sum] = true
			}
		}
	}
	return all
}

// Merge makes a plan of the samples of im's manifest. Chunks that im has not
// located (Image.Locate) are left out. Of two samples and more the newest is held
// out to measure the plan.
//
// Several workloads get one plan: where they read much the same, all samples
// have one vote each. Where they differ, a chunk needs a share of the samples of
// one workload only, or a workload that starts rarely would never be served; what that costs
// the others is seen in the waste and bounded by the budget of the pack.
func Merge(samples []profile.Sample, im *Image, o MergeOptions) (Plan, Report) {
	o.Share, o.Similar, o.Samples = cmp.Or(o.Share, DefaultShare), cmp.Or(o.Similar, DefaultSimilar), cmp.Or(o.Samples, DefaultSamples)
	var r Report
	starts := r.starts(samples, im, o.Samples)
	if len(starts) >= 2 {
		r.HeldOut, r.held = 1, make(map[[32]byte]int64)
		for sum := range starts[0].at {
			p, _ := im.Place(sum)
			r.held[sum] = p.Size
		}
		starts = starts[1:]
	}
	r.Without, r.With = outcomes(starts)
	pools := r.pools(starts, o.Similar)
	kept := make(map[[32]byte]bool)
	all := make(map[[32]byte][]uint32)
	for _, pool := range pools {
		r.Used += len(pool)
		count := make(map[[32]byte]int)
		for _, s := range pool {
			for sum, at := range s.at {
				count[sum]++
				all[sum] = append(all[sum], at)
			}
		}
		need := max(1, int(math.Ceil(o.Share*float64(len(pool))-1e-9)))
		for sum, n := range count {
			if n >= need {
				kept[sum] = true
			}
		}
	}
	r.Rare = len(all) - len(kept)
	return order(kept, all, im), r
}

// starts picks the samples to use, the newest first.
func (r *Report) starts(samples []profile.Sample, im *Image, most int) []start {
	sorted := make([]*profile.Sample, 0, len(samples))
	for i := range samples {
		if s := &samples[i]; s.Check() == nil && s.Manifest == im.Ref.DigestStr() {
			sorted = append(sorted, s)
		}
	}
	slices.SortStableFunc(sorted, func(a, b *profile.Sample) int { return b.Started.Compare(a.Started) })
	var list []start
	unknown := make(map[[32]byte]bool)
	for _, s := range sorted[:min(len(sorted), most)] {
		st := start{sample: s, at: make(map[[32]byte]uint32)}
		for j := range s.Layers {
			l := &s.Layers[j]
			for k := range l.Len() {
				sum, at := l.Chunk(k)
				if _, ok := im.Place(sum); !ok {
					unknown[sum] = true
					continue
				}
				if first, ok := st.at[sum]; !ok || at < first {
					st.at[sum] = at
				}
			}
		}
		if len(st.at) > 0 {
			list = append(list, st)
		}
	}
	r.Unknown, r.Other = len(unknown), len(samples)-len(list)
	return list
}

// pools parts the starts by workload where these differ.
func (r *Report) pools(starts []start, similar float64) [][]start {
	index := make(map[string]int)
	var pools [][]start
	for _, s := range starts {
		i, ok := index[s.sample.Workload]
		if !ok {
			i = len(pools)
			index[s.sample.Workload] = i
			pools = append(pools, nil)
		}
		pools[i] = append(pools[i], s)
	}
	r.Workloads, r.Similarity = len(pools), 1
	if len(pools) < 2 {
		return pools
	}
	pools = pools[:min(len(pools), maxWorkloads)]
	sets := make([]map[[32]byte]bool, len(pools))
	for i, pool := range pools {
		sets[i] = make(map[[32]byte]bool)
		for _, s := range pool {
			for sum := range s.at {
				sets[i][sum] = true
			}
		}
		for j := range i {
			r.Similarity = min(r.Similarity, jaccard(sets[i], sets[j]))
		}
	}
	if r.Differ = r.Similarity < similar; r.Differ {
		return pools
	}
	return [][]start{starts}
}

// jaccard is the share of the chunks of two sets that both have.
func jaccard(a, b map[[32]byte]bool) float64 {
	both := 0
	for sum := range a {
		if b[sum] {
			both++
		}
	}
	if either := len(a) + len(b) - both; either > 0 {
		return float64(both) / float64(either)
	}
	return 1
}

// order lists the kept chunks by when they are needed: the median of the starts
// that read them. What is needed in the same millisecond comes in the order of
// the image, where neighbours are alike and compress better together.
func order(kept map[[32]byte]bool, all map[[32]byte][]uint32, im *Image) Plan {
	type located struct {
		Planned
		place Place
	}
	list := make([]located, 0, len(kept))
	for sum := range kept {
		p, ok := im.Place(sum)
		if !ok {
			continue
		}
		at := all[sum]
		slices.Sort(at)
		list = append(list, located{Planned{Layer: im.Layers[p.Layer].Digest, Sum: sum, Size: p.Size, At: at[(len(at)-1)/2]}, p})
	}
	slices.SortFunc(list, func(a, b located) int {
		return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.place.Layer, b.place.Layer), cmp.Compare(a.place.offset, b.place.offset),
			cmp.Compare(a.place.inner, b.place.inner), bytes.Compare(a.Sum[:], b.Sum[:]))
	})
	list = list[:min(len(list), profile.MaxChunks)]
	plan := make(Plan, len(list))
	for i := range list {
		plan[i] = list[i].Planned
	}
	return plan
}

// outcomes are the medians of what starts cost without and with a profile.
func outcomes(starts []start) (without, with *profile.Outcome) {
	var plain, profiled []profile.Outcome
	for _, s := range starts {
		if s.sample.Profile == "" {
			plain = append(plain, s.sample.Outcome)
		} else {
			profiled = append(profiled, s.sample.Outcome)
		}
	}
	return medianOutcome(plain), medianOutcome(profiled)
}

// medianOutcome is the median of each figure; nil of none.
func medianOutcome(list []profile.Outcome) *profile.Outcome {
	if len(list) == 0 {
		return nil
	}
	of := func(get func(*profile.Outcome) int64) int64 {
		values := make([]int64, len(list))
		for i := range list {
			values[i] = get(&list[i])
		}
		slices.Sort(values)
		return values[(len(values)-1)/2]
	}
	return &profile.Outcome{
		Requests:     of(func(o *profile.Outcome) int64 { return o.Requests }),
		FetchedBytes: of(func(o *profile.Outcome) int64 { return o.FetchedBytes }),
		PackBytes:    of(func(o *profile.Outcome) int64 { return o.PackBytes }),
		WaitedReads:  of(func(o *profile.Outcome) int64 { return o.WaitedReads }),
		WaitMillis:   of(func(o *profile.Outcome) int64 { return o.WaitMillis }),
	}
}
