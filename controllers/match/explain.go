package match

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/v1alpha1"
)

func lowest(word uint64) int { return bits.TrailingZeros64(word) }

// Explain says a decision in a sentence for people: which rule won over which,
// or why none did, with the closest rule and the part of it that failed.
func (s *Set) Explain(img Image, d Decision) string {
	what := img.Repository + ":" + img.Tag
	switch d.Reason {
	case v1alpha1.ReasonIsAcceleratedImage:
		return what + " is itself an accelerated image"
	case v1alpha1.ReasonNotAnImage:
		if img.Facts != nil && img.Facts.NotImage != "" {
			return what + " is no container image: " + img.Facts.NotImage
		}
		return what + " is no container image: tags of this form are for signatures and other artifacts about an image"
	case v1alpha1.ReasonNoRuleMatches:
		return s.explainNone(img, what)
	case v1alpha1.ReasonRuleSuspended:
		return fmt.Sprintf("rule %q matches %s and is suspended: set spec.suspend to false", d.Rule.Key.Name, what)
	case v1alpha1.ReasonAccelerationDisabled:
		return fmt.Sprintf("rule %q matches %s, but image acceleration is off in registry %q: set its spec.accelerationEnabled to true",
			d.Rule.Key.Name, what, img.Registry.Name)
	case v1alpha1.ReasonTagTooLong:
		return fmt.Sprintf("the tag of %s has %d characters and %q does not fit behind it: registries allow %d", what, len(img.Tag), image.Suffix, image.MaxTagLength)
	case v1alpha1.ReasonPlatformNotWanted:
		return fmt.Sprintf("%s is for %s, and rule %q wants %s only", what, strings.Join(img.Facts.Platforms, ", "), d.Rule.Key.Name, platforms(d.Rule))
	case v1alpha1.ReasonAlreadyAccelerated:
		return fmt.Sprintf("%s%s exists and was made from this very image", what, image.Suffix)
	}
	text := fmt.Sprintf("rule %q matches %s", d.Rule.Key.Name, what)
	if others := s.others(img, d.Rule); len(others) > 0 {
		text += fmt.Sprintf("; so does %s, which is newer", strings.Join(others, ", "))
		if len(others) > 1 {
			text = strings.Replace(strings.Replace(text, "so does", "so do", 1), "which is newer", "which are newer", 1)
		}
	}
	return text
}

// platforms lists those that a rule keeps.
func platforms(r *Rule) string {
	var all []string
	for _, p := range r.Platforms {
		all = append(all, string(p))
	}
	return strings.Join(all, ", ")
}

// others names the active rules that match beside the one that won.
func (s *Set) others(img Image, won *Rule) (names []string) {
	for i := range s.rules {
		if r := &s.rules[i]; r != won && !r.Suspended {
			if part, _ := s.failed(r, img); part == "" {
				names = append(names, fmt.Sprintf("%q", r.Key.Name))
			}
		}
	}
	return names
}

// parts of a rule, in the order in which they narrow it down.
var parts = [...]string{"registry", "namespace", "repository", "tag"}

// failed returns the first part of a rule that does not fit an image, and how
// many parts before it did; "" and len(parts) when all do.
func (s *Set) failed(r *Rule, img Image) (part string, fit int) {
	if r.Registry != img.Registry {
		return parts[0], 0
	}
	best := 1
	s.eachNamespace(img.Repository, func(namespace, rest string) {
		if namespace != r.Namespace {
			return
		}
		g := s.groups[groupKey{r.Registry, r.Namespace}]
		bit := g.bit(s, r)
		switch {
		case bit < 0:
		case !g.repositories.MatchOne(bit, rest):
			best = max(best, 2)
		case !g.tag.MatchOne(bit, img.Tag):
			best = max(best, 3)
		default:
			best = len(parts)
		}
	})
	if best == len(parts) {
		return "", best
	}
	return parts[best], best
}

// bit is the place of a rule in its group.
func (g *group) bit(s *Set, r *Rule) int {
	if g == nil {
		return -1
	}
	for bit, i := range g.rules {
		if &s.rules[i] == r {
			return bit
		}
	}
	return -1
}

// explainNone names the rule that came closest.
func (s *Set) explainNone(img Image, what string) string {
	var closest *Rule
	var failed string
	most := -1
	for i := range s.rules {
		if part, fit := s.failed(&s.rules[i], img); fit > most {
			closest, failed, most = &s.rules[i], part, fit
		}
	}
	if closest == nil {
		return "no rule matches " + what + ": there are no rules"
	}
	near := fmt.Sprintf("no rule matches %s; the closest is %q", what, closest.Key.Name)
	switch failed {
	case parts[0]:
		return fmt.Sprintf("%s, which is for registry %q and not for %q", near, closest.Registry.Name, img.Registry.Name)
	case parts[1]:
		return fmt.Sprintf("%s, whose namespace is %q", near, closest.Namespace)
	case parts[2]:
		return fmt.Sprintf("%s, whose repository %q does not match all of %q", near, closest.Repository, below(img.Repository, closest.Namespace))
	}
	return fmt.Sprintf("%s, whose tag %q does not match all of %q", near, closest.Tag, img.Tag)
}

// below is the part of a repository path that a rule's pattern is for.
func below(repository, namespace string) string {
	if rest, ok := strings.CutPrefix(repository, namespace+"/"); ok {
		return rest
	}
	return repository
}
