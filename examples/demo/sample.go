package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"time"

	"github.com/gormsessions/gormsessions"
)

const sampleEmail = "ada@example.com"

// addSample makes an account with a month of sign-ins, and says how to get in.
func (s *site) addSample(ctx context.Context, out io.Writer) error {
	password := rand.Text()
	user, err := s.addUser(ctx, sampleEmail, password)
	if errors.As(err, new(invalid)) {
		_, err = fmt.Fprintf(out, "sample: %s is in the database already, with the password that was shown then; to start over, delete that or give another -dsn\n", sampleEmail)
		return err
	}
	if err != nil {
		return err
	}
	past := sampleSessions(user, s.now())
	for i := range past {
		// One by one: as a batch they would be more at once than one user may have.
		if err := s.db.WithContext(ctx).Create(&past[i]).Error; err != nil {
			return err
		}
	}
	project, err := s.project(ctx, user)
	if err != nil {
		return err
	}
	for _, key := range []APIKey{
		{Name: "Backup", Abilities: gormsessions.Abilities{abilityRead}},
		{Name: "Build server", Abilities: gormsessions.Abilities{abilityRead, abilityWrite}},
	} {
		if err := s.storeKey(ctx, project, &key); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "sample: sign in as %s with the password %s\n", sampleEmail, password)
	return err
}

// sampleSessions are always the same, but for the time: some that ended, and four
// that are still good.
func sampleSessions(user *User, now time.Time) []Device {
	agents := []struct{ header, address string }{
		{"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "192.0.2.17"},
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1", "198.51.100.24"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/137.0.0.0 Safari/537.36 Edg/137.0.0.0", "203.0.113.8"},
		{"Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/27.0 Chrome/125.0.0.0 Mobile Safari/537.36", "2001:db8:4f::12"},
	}
	dice := mathrand.New(mathrand.NewPCG(1, 2))
	device := func(agent int, created time.Time) Device {
		d := Device{UserAgent: agents[agent].header, Address: agents[agent].address}
		d.OwnerID, d.CreatedAt, d.AuthenticatedAt = user.ID, created, created
		return d
	}
	var list []Device
	for day := chartDays - 1; day > 0; day-- {
		for range dice.IntN(4) {
			d := device(dice.IntN(len(agents)), now.Add(-time.Duration(day)*24*time.Hour-time.Duration(dice.IntN(600))*time.Minute))
			end := d.CreatedAt.Add(time.Duration(1+dice.IntN(min(16*day, 9*24))) * time.Hour) // before now
			if dice.IntN(3) == 0 {
				d.RevokedAt, d.RevokedReason = &end, "signed out"
			}
			d.ExpiresAt = &end
			list = append(list, d)
		}
	}
	for i, name := range []string{"Desk at the library", "", "", "Old phone, in the drawer in the hall, for emergencies"} {
		d := device(i, now.Add(-time.Duration(3+i*41)*time.Hour))
		used, end := now.Add(-time.Duration(i*i*5+1)*27*time.Minute), now.Add(time.Duration(7*24-i*21)*time.Hour)
		d.Name, d.LastUsedAt, d.ExpiresAt = name, &used, &end
		list = append(list, d)
	}
	return list
}
