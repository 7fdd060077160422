package match

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"

	"github.com/apparate/apparate/api/v1alpha1"
)

// Address is the address of an image, taken apart.
type Address struct{ Host, Repository, Tag string }

// ParseAddress reads "host/repository:tag". Docker's shorthands are understood
// ("nginx:latest" is docker.io/library/nginx:latest), a scheme in front of it and
// a digest behind the tag are ignored. The error says what is wrong.
func ParseAddress(s string) (Address, error) {
	plain := strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(s), "https://"), "http://")
	named, err := reference.ParseNormalizedNamed(plain)
	if err != nil {
		return Address{}, fmt.Errorf("%q is no image address such as registry.example.com/team/app:v1", s)
	}
	if _, ok := named.(reference.Tagged); !ok {
		if _, ok := named.(reference.Digested); ok {
			return Address{}, fmt.Errorf("%q has a digest and no tag: rules are for tags", s)
		}
		named = reference.TagNameOnly(named)
	}
	return Address{
		Host: reference.Domain(named), Repository: reference.Path(named), Tag: named.(reference.Tagged).Tag(),
	}, nil
}

// SameHost says whether two registry hosts are the same in image names: without
// regard to case, and Docker Hub under each of its names.
func SameHost(a, b string) bool { return canonicalHost(a) == canonicalHost(b) }

func canonicalHost(h string) string {
	switch h = strings.ToLower(h); h {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return h
}

// Verify says whether a set would convert the image at an address of an instance,
// by its name alone, with the reason and a sentence that explains it. An instance
// without a host is taken to be the one of the address.
func (s *Set) Verify(in Instance, address string) (reason, message string, ok bool) {
	a, err := ParseAddress(address)
	if err != nil {
		return v1alpha1.ReasonBadAddress, err.Error(), false
	}
	if in.Host != "" && !SameHost(in.Host, a.Host) {
		return v1alpha1.ReasonNoRuleMatches, fmt.Sprintf("%s is an image of %s, and the rule is for registry %q, which is %s", address, a.Host, in.Key.Name, in.Host), false
	}
	img := Image{Registry: in.Key, Repository: a.Repository, Tag: a.Tag}
	d := s.Decide(img)
	return d.Reason, s.Explain(img, d), d.Convert
}
