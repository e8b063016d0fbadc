package gormsessions_test

import (
	"testing"

	"github.com/gormsessions/gormsessions"
)

func TestAbilitiesCan(t *testing.T) {
	for _, c := range []struct {
		granted gormsessions.Abilities
		ability string
		want    bool
	}{
		{nil, "posts:write", false},
		{gormsessions.Abilities{}, "*", false},
		{gormsessions.Abilities{"posts:write"}, "posts:write", true},
		{gormsessions.Abilities{"posts:write"}, "posts:read", false},
		{gormsessions.Abilities{"posts:write"}, "posts", false},
		{gormsessions.Abilities{"posts:write"}, "posts:*", false},
		{gormsessions.Abilities{"posts:write"}, "posts:write:all", false},
		{gormsessions.Abilities{"posts"}, "posts:write", false},
		{gormsessions.Abilities{"posts:*"}, "posts:write", true},
		{gormsessions.Abilities{"posts:*"}, "posts:comments:write", true},
		{gormsessions.Abilities{"posts:*"}, "posts:*", true},
		{gormsessions.Abilities{"posts:*"}, "posts", false},
		{gormsessions.Abilities{"posts:*"}, "postscripts:write", false},
		{gormsessions.Abilities{"posts:comments:*"}, "posts:write", false},
		{gormsessions.Abilities{"*"}, "posts:write", true},
		{gormsessions.Abilities{"*"}, "*", true},
		{gormsessions.Abilities{"*"}, "", false},
		{gormsessions.Abilities{"*"}, "posts:", false},
		{gormsessions.Abilities{"*"}, "*:write", false},
		{gormsessions.Abilities{""}, "", false},
		{gormsessions.Abilities{"Posts:write"}, "Posts:write", false},
	} {
		if got := c.granted.Can(c.ability); got != c.want {
			t.Errorf("%q.Can(%q): got %v, want %v", c.granted, c.ability, got, c.want)
		}
	}
}
