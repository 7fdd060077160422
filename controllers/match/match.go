// Package match decides which images are converted: rules × image → convert, or
// skip with a reason. It is pure: no clock, no network, no Kubernetes client.
//
// # How a decision is made
//
// In this order, and the first that applies is the answer:
//
//	IsAcceleratedImage, NotAnImage   by the tag alone (-apparate, cosign's names)
//	NoRuleMatches                    no rule has its registry, namespace, repository and tag
//	RuleSuspended                    those that do are all suspended
//	AccelerationDisabled             the instance is switched off
//	TagTooLong                       no room for the suffix
//	IsAcceleratedImage, NotAnImage,  by the manifest, where it was looked at
//	PlatformNotWanted, AlreadyAccelerated
//	Matched                          convert
//
// Of several rules that match the oldest wins, and of those of the same age the
// one whose name sorts first: adding a rule never changes how images of an older
// one are converted.
package match

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/match/patterns"
)

// RootNamespace is the namespace that repositories without one count as.
const RootNamespace = "library"

// Key names a Registry or a rule.
type Key = types.NamespacedName

// Instance is a registry instance, as far as decisions need it.
type Instance struct {
	Key Key
	// Host is its endpoint as in image names.
	Host string
	// Enabled is the switch for image acceleration.
	Enabled bool
}

// Rule is an acceleration rule, as far as decisions need it.
type Rule struct {
	Key Key
	// Registry is the instance that it is for.
	Registry Key
	// Namespace is literal; Repository and Tag are RE2 patterns for all of the
	// rest of the path and of the tag, and match everything when empty.
	Namespace, Repository, Tag string
	Suspended                  bool
	Format                     v1alpha1.Format
	Platforms                  []v1alpha1.Platform
	// Created orders rules; the zero time is older than any.
	Created time.Time

	way string
}

// Way names how a rule has images converted: two rules of the same way do the
// same with an image. It is never empty for a rule out of a [Set].
func (r *Rule) Way() string { return r.way }

// Image is a tag that was pushed.
type Image struct {
	Registry        Key
	Repository, Tag string
	// Facts are what its manifest says; nil when nobody has looked.
	Facts *Facts
}

// Facts are what the registry says of an image.
type Facts struct {
	// Digest is the manifest's.
	Digest string
	// Accelerated says that the manifest is the result of a conversion.
	Accelerated bool
	// NotImage says what it is instead of an image of files; empty for an image.
	NotImage string
	// Platforms are those of its images; empty when they are not known.
	Platforms []string
	// AcceleratedFrom is the source digest of the accelerated image beside it;
	// empty when there is none, or nobody has looked.
	AcceleratedFrom string
}

// Decision says whether an image is converted.
type Decision struct {
	// Convert is true for reason Matched only.
	Convert bool
	// Reason is one of the reasons in package v1alpha1.
	Reason string
	// Rule is the one that won, also where something else speaks against the
	// conversion; nil when none matches.
	Rule *Rule
}

// Set is a set of rules, ready to decide. It is safe for parallel use.
type Set struct {
	instances map[Key]Instance
	rules     []Rule // the one that wins first
	groups    map[groupKey]*group
}

// groupKey is what of a rule is compared literally.
type groupKey struct {
	registry  Key
	namespace string
}

// group has the rules of one namespace of one registry; bit i of both pattern
// sets is rules[i].
type group struct {
	rules             []int // indexes into Set.rules, ascending
	active            []uint64
	repositories, tag *patterns.Set
}

// Compile prepares rules. Those with a mistake in them are left out, and the
// mistake is returned under their key.
func Compile(instances []Instance, rules []Rule) (*Set, map[Key]error) {
	s := &Set{instances: make(map[Key]Instance, len(instances)), groups: map[groupKey]*group{}}
	for _, i := range instances {
		s.instances[i.Key] = i
	}
	bad := map[Key]error{}
	for _, r := range rules {
		if err := r.check(); err != nil {
			bad[r.Key] = err
			continue
		}
		r.way = cmp.Or(string(r.Format), string(v1alpha1.FormatEstargz)) + " " + platforms(&r)
		s.rules = append(s.rules, r)
	}
	slices.SortFunc(s.rules, func(a, b Rule) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Name, b.Key.Name))
	})
	for i := range s.rules {
		k := groupKey{s.rules[i].Registry, s.rules[i].Namespace}
		if s.groups[k] == nil {
			s.groups[k] = &group{}
		}
		s.groups[k].rules = append(s.groups[k].rules, i)
	}
	for k, g := range s.groups {
		if err := g.compile(s.rules); err != nil {
			// Each pattern was good by itself; together they are not, for size.
			for _, i := range g.rules {
				bad[s.rules[i].Key] = err
			}
			delete(s.groups, k)
		}
	}
	return s, bad
}

// check finds the mistake in a rule's patterns.
func (r *Rule) check() error {
	for _, p := range []struct{ field, pattern string }{{"repository", r.Repository}, {"tag", r.Tag}} {
		if err := patterns.Check(p.pattern); err != nil {
			return v1alpha1.FieldError{Field: "spec.trigger." + p.field, Message: err.Error()}
		}
	}
	if r.Namespace == "" {
		return v1alpha1.FieldError{Field: "spec.trigger.namespace", Message: "must name one namespace of the registry"}
	}
	return nil
}

func (g *group) compile(rules []Rule) error {
	var repositories, tags []string
	for _, i := range g.rules {
		repositories = append(repositories, rules[i].Repository)
		tags = append(tags, rules[i].Tag)
	}
	var err error
	if g.repositories, err = patterns.Compile(repositories); err != nil {
		return err
	}
	if g.tag, err = patterns.Compile(tags); err != nil {
		return err
	}
	g.active = make([]uint64, g.tag.Words())
	for bit, i := range g.rules {
		if !rules[i].Suspended {
			g.active[bit/64] |= 1 << (bit % 64)
		}
	}
	return nil
}

// Decide decides on one image.
func (s *Set) Decide(img Image) Decision {
	if reason := byTag(img.Tag); reason != "" {
		return Decision{Reason: reason}
	}
	active, suspended := s.winners(img)
	switch {
	case active < 0 && suspended < 0:
		return Decision{Reason: v1alpha1.ReasonNoRuleMatches}
	case active < 0:
		return Decision{Reason: v1alpha1.ReasonRuleSuspended, Rule: &s.rules[suspended]}
	}
	d := Decision{Rule: &s.rules[active]}
	switch {
	case !s.instances[img.Registry].Enabled:
		d.Reason = v1alpha1.ReasonAccelerationDisabled
	case len(img.Tag)+len(image.Suffix) > image.MaxTagLength:
		d.Reason = v1alpha1.ReasonTagTooLong
	default:
		d.Reason = d.Rule.byFacts(img.Facts)
	}
	d.Convert = d.Reason == v1alpha1.ReasonMatched
	return d
}

// artifactTag are the tags of artifacts about an image: the referrers tag schema
// of the OCI distribution spec 1.1, and cosign's names of signatures,
// attestations and SBOMs, which put a suffix behind it.
var artifactTag = regexp.MustCompile(`^sha(256-[0-9a-f]{64}|512-[0-9a-f]{128})(\.[a-z]+)?$`)

// byTag judges what the tag alone tells; "" when it tells nothing.
func byTag(tag string) string {
	switch {
	case image.IsAcceleratedTag(tag):
		return v1alpha1.ReasonIsAcceleratedImage
	case strings.HasPrefix(tag, "sha") && artifactTag.MatchString(tag):
		return v1alpha1.ReasonNotAnImage
	}
	return ""
}

// byFacts judges what the registry said.
func (r *Rule) byFacts(f *Facts) string {
	switch {
	case f == nil:
	case f.Accelerated:
		return v1alpha1.ReasonIsAcceleratedImage
	case f.NotImage != "":
		return v1alpha1.ReasonNotAnImage
	case !r.wants(f.Platforms):
		return v1alpha1.ReasonPlatformNotWanted
	case f.AcceleratedFrom != "" && f.AcceleratedFrom == f.Digest:
		return v1alpha1.ReasonAlreadyAccelerated
	}
	return v1alpha1.ReasonMatched
}

// wants says whether the rule is for one of the platforms.
func (r *Rule) wants(platforms []string) bool {
	if len(r.Platforms) == 0 || len(platforms) == 0 {
		return true
	}
	return slices.ContainsFunc(platforms, func(have string) bool {
		return slices.ContainsFunc(r.Platforms, func(want v1alpha1.Platform) bool {
			// "linux/arm64" is for every variant of arm64.
			return have == string(want) || strings.HasPrefix(have, string(want)+"/")
		})
	})
}

// winners returns the indexes of the first active rule and of the first
// suspended rule that match; -1 for none.
func (s *Set) winners(img Image) (active, suspended int) {
	active, suspended = -1, -1
	s.eachNamespace(img.Repository, func(namespace, rest string) {
		g := s.groups[groupKey{img.Registry, namespace}]
		if g == nil {
			return
		}
		var a, b [4]uint64 // 256 rules of a namespace without an allocation
		repositories := g.repositories.Match(rest, a[:0])
		tags := g.tag.Match(img.Tag, b[:0])
		for w := range repositories {
			both := repositories[w] & tags[w]
			active = first(active, g.rules, w, both&g.active[w])
			suspended = first(suspended, g.rules, w, both&^g.active[w])
		}
	})
	return active, suspended
}

// first returns the lesser of found and the rule of the lowest bit of word w.
func first(found int, rules []int, w int, bits uint64) int {
	if bits == 0 {
		return found
	}
	i := rules[w*64+lowest(bits)]
	if found < 0 || i < found {
		return i
	}
	return found
}

// eachNamespace calls f for every way in which a repository path is a namespace
// and the rest of the path.
func (s *Set) eachNamespace(repository string, f func(namespace, rest string)) {
	slash := strings.IndexByte(repository, '/')
	if slash < 0 {
		f(RootNamespace, repository)
		return
	}
	for slash >= 0 {
		f(repository[:slash], repository[slash+1:])
		next := strings.IndexByte(repository[slash+1:], '/')
		if next < 0 {
			return
		}
		slash += 1 + next
	}
}

// Wants says whether an active rule of an instance is for some tag of a
// repository: there is no need to list the tags of others.
func (s *Set) Wants(registry Key, repository string) bool {
	wanted := false
	s.eachNamespace(repository, func(namespace, rest string) {
		g := s.groups[groupKey{registry, namespace}]
		if g == nil || wanted {
			return
		}
		var a [4]uint64
		for w, bits := range g.repositories.Match(rest, a[:0]) {
			wanted = wanted || bits&g.active[w] != 0
		}
	})
	return wanted
}

// Repositories returns what can be told of an instance's repositories from its
// active rules: wanted says that there is such a rule at all, named are the
// repositories that rules name without a pattern.
func (s *Set) Repositories(registry Key) (named []string, wanted bool) {
	for i := range s.rules {
		r := &s.rules[i]
		if r.Registry != registry || r.Suspended {
			continue
		}
		wanted = true
		if r.Repository == "" {
			continue
		}
		// The pattern was compiled before.
		if prefix, whole := regexp.MustCompile(r.Repository).LiteralPrefix(); whole {
			named = append(named, r.Namespace+"/"+prefix)
		}
	}
	slices.Sort(named)
	return slices.Compact(named), wanted
}

// Instance returns what is known of a registry instance.
func (s *Set) Instance(registry Key) (Instance, bool) {
	i, ok := s.instances[registry]
	return i, ok
}
