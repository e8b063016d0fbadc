package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// contestant is one way to do the work of a group.
type contestant struct {
	name string
	run  func(context.Context, input) (any, error)
	// check says what is wrong with an answer of run. It is asked before anything
	// is measured; one wrong answer fails the program.
	check func(answer any, in input) error
	// rows, if set, are other rows than the group's.
	rows *population
}

// input is what one operation is about: the row, and what a client would send.
type input struct {
	rows  population
	i     int
	token string
}

func (p population) input(i int) input {
	i %= p.rows
	return input{rows: p, i: i, token: p.token(i)}
}

// group is contestants who do the same work, so that their times can be compared.
type group struct {
	name  string
	title string
	store string // the database's title, "" for none
	size  int    // rows
	rows  population
	pool  int // how many of the rows are asked for; 0: all

	goroutines int
	request    bool // with a context that can be cancelled, as a request's
	slices     int  // of how many slices one is: what waits for a disk varies more; 0: one
	uneven     bool // contestants differ by orders of magnitude: each has a count of its own

	contestants []contestant // ratios are to the first
}

// id names a contestant in a group, for -only.
func (g *group) id(c *contestant) string {
	return fmt.Sprintf("%s/%d/%s/%s", g.store, g.size, g.name, c.name)
}

var errNotFound = errors.New("not found")

// isRow checks an answer of one session.
func isRow(answer any, in input) error {
	want := in.rows.session(in.i)
	got, _ := answer.(*UserSession)
	return same(got, &want)
}

// isRowWithOwner checks one with its owner.
func isRowWithOwner(answer any, in input) error {
	want := in.rows.session(in.i)
	want.Owner = &User{ID: want.OwnerID, Email: email(want.OwnerID)}
	got, _ := answer.(*UserSession)
	return same(got, &want)
}

// isListOfOwner checks the sessions of an owner, the newest first.
func isListOfOwner(answer any, in input) error {
	list, _ := answer.([]UserSession)
	var want []int
	for i := in.i % in.rows.owners(); i < in.rows.rows; i += in.rows.owners() {
		want = append(want, i)
	}
	slices.Reverse(want)
	if len(list) != len(want) {
		return fmt.Errorf("the list has %d sessions, want %d", len(list), len(want))
	}
	for n, i := range want {
		session := in.rows.session(i)
		if err := same(&list[n], &session); err != nil {
			return fmt.Errorf("session %d of the list: %w", n, err)
		}
	}
	return nil
}
