package gormsessions_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

func TestR13IsActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for _, c := range []struct {
			name             string
			session          gormsessions.Base
			active, expired  bool
			revoked, isFresh bool
		}{
			{"never expires", gormsessions.Base{AuthenticatedAt: now}, true, false, false, true},
			{"expires later", gormsessions.Base{ExpiresAt: at(now.Add(time.Microsecond)), AuthenticatedAt: now.Add(-time.Minute)}, true, false, false, true},
			{"expires now", gormsessions.Base{ExpiresAt: at(now), AuthenticatedAt: now.Add(-time.Minute - 1)}, false, true, false, false},
			{"expired", gormsessions.Base{ExpiresAt: at(now.Add(-time.Microsecond))}, false, true, false, false},
			{"revoked", gormsessions.Base{RevokedAt: at(now)}, false, false, true, false},
			{"revoked before it expires", gormsessions.Base{RevokedAt: at(now), ExpiresAt: at(now.Add(time.Hour))}, false, false, true, false},
		} {
			s := &c.session
			if s.IsActive() != c.active || s.IsExpired() != c.expired || s.IsRevoked() != c.revoked || s.IsFresh(time.Minute) != c.isFresh {
				t.Errorf("%s: active %v, expired %v, revoked %v, fresh %v", c.name, s.IsActive(), s.IsExpired(), s.IsRevoked(), s.IsFresh(time.Minute))
			}
		}
		later := gormsessions.Base{ExpiresAt: at(now.Add(time.Hour))}
		<-time.After(time.Hour) // the bubble's clock jumps
		if later.IsActive() {
			t.Error("active when its hour has come")
		}
	})
}

func TestErrors(t *testing.T) {
	if !errors.Is(gormsessions.ErrNoSession, gorm.ErrRecordNotFound) {
		t.Error("ErrNoSession does not match gorm.ErrRecordNotFound")
	}
	for _, err := range []error{gormsessions.ErrZeroOwner, gormsessions.ErrNotRegistered, gormsessions.ErrNoScope} {
		if errors.Is(err, gormsessions.ErrNoSession) || errors.Is(err, gorm.ErrRecordNotFound) {
			t.Errorf("%v reads as no session", err)
		}
	}
}

func at(t time.Time) *time.Time { return &t }
