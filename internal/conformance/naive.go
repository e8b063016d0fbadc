package conformance

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"
)

// These are the negative controls: what a session table without this package
// does. Each shows, by the same looks as the suite, that the fault is real where
// the guard is not. A control that turns red says that GORM has changed, and that
// a guard may have become needless.

// NaiveBase digests in a BeforeCreate method, and has no create-only columns.
type NaiveBase struct {
	ID          uint
	TokenDigest []byte
	ExpiresAt   *time.Time
	RevokedAt   *time.Time
}

func (b *NaiveBase) BeforeCreate(*gorm.DB) error {
	digest := sha256.Sum256([]byte("a token"))
	b.TokenDigest = digest[:]
	return nil
}

type NaiveSession struct {
	NaiveBase
	OwnerID uint
	Owner   *NaiveUser `gorm:"foreignKey:OwnerID;constraint:OnDelete:CASCADE"`
}

type NaiveUser struct {
	ID       uint
	Name     string
	Sessions []NaiveSession `gorm:"foreignKey:OwnerID"`
}

// NaiveOwnHook has a hook of its own, which shadows the embedded one.
type NaiveOwnHook struct {
	NaiveBase
	Note string
}

func (*NaiveOwnHook) BeforeCreate(*gorm.DB) error { return nil }

func naiveActive(db *gorm.DB) *gorm.DB {
	now := db.NowFunc()
	return db.Where("revoked_at IS NULL").Where("expires_at IS NULL").Or("expires_at > ?", now)
}

func (s suite) naive(t *testing.T) {
	db, _, c, _ := s.open(t)
	must(t, db.AutoMigrate(&NaiveUser{}, &NaiveSession{}, &NaiveOwnHook{}))
	ada, eve := NaiveUser{Name: "ada"}, NaiveUser{Name: "eve"}
	must(t, db.Create(&ada).Error)
	must(t, db.Create(&eve).Error)
	sign := func(owner uint) NaiveSession {
		t.Helper()
		v := NaiveSession{OwnerID: owner}
		must(t, db.Create(&v).Error)
		return v
	}
	count := func(db *gorm.DB) (n int64) {
		t.Helper()
		must(t, db.Model(&NaiveSession{}).Count(&n).Error)
		return n
	}

	t.Run("R16_SaveRevives", func(t *testing.T) {
		stale := sign(ada.ID)
		must(t, db.Model(&NaiveSession{}).Where("id = ?", stale.ID).Update("revoked_at", c.Now()).Error)
		must(t, db.Save(&stale).Error)
		want(t, "revived by Save", count(db.Where("id = ? AND revoked_at IS NULL", stale.ID)), 1)
		must(t, db.Delete(&NaiveSession{}, stale.ID).Error)
		must(t, db.Save(&stale).Error)
		want(t, "a deleted one back by Save", count(db.Where("id = ?", stale.ID)), 1)
	})

	t.Run("R22_ZeroOwnerMatchesAll", func(t *testing.T) {
		sign(ada.ID)
		sign(eve.ID)
		all := count(db)
		want(t, "of nobody", count(db.Where(&NaiveSession{OwnerID: NaiveUser{}.ID})), all)
	})

	t.Run("R23_HasManyForgetsTheCascade", func(t *testing.T) {
		sign(eve.ID)
		if err := db.Exec("DELETE FROM "+tableOf(t, db, &eve)+" WHERE id = ?", eve.ID).Error; err == nil {
			t.Error("the owner could be deleted: the foreign key cascades, or there is none")
		}
	})

	t.Run("R25_HookIsShadowed", func(t *testing.T) {
		v := NaiveOwnHook{}
		must(t, db.Create(&v).Error)
		want(t, "digest", len(v.TokenDigest), 0)
		w := NaiveSession{OwnerID: ada.ID}
		must(t, db.Session(&gorm.Session{SkipHooks: true}).Create(&w).Error)
		want(t, "digest with SkipHooks", len(w.TokenDigest), 0)
	})

	t.Run("R27_OrWidens", func(t *testing.T) {
		v := sign(ada.ID)
		must(t, db.Model(&v).Updates(map[string]any{"revoked_at": c.Now(), "expires_at": c.Now().Add(time.Hour)}).Error)
		want(t, "a revoked one is active", count(db.Where("id = ?", v.ID).Scopes(naiveActive)), 1)
	})

	t.Run("R29_TimesAsText", func(t *testing.T) {
		if db.Name() != "sqlite" {
			t.Skip("only SQLite compares times as text")
		}
		v := sign(ada.ID)
		expired := c.Now().Add(-time.Hour).In(time.FixedZone("east", 5*3600))
		must(t, db.Model(&v).Update("expires_at", expired).Error)
		want(t, "an expired one is active", count(db.Where("id = ? AND expires_at > ?", v.ID, c.Now().UTC())), 1)
	})

	t.Run("R10_ShownByPrinting", func(t *testing.T) {
		v := struct{ Token string }{"the secret"}
		want(t, "printed", fmt.Sprintf("%+v", v), "{Token:the secret}")
	})

	t.Run("R31_AutoMigrateAlone", func(t *testing.T) {
		if s.Conns == 1 {
			t.Skip("nodes do not share one process's memory")
		}
		_, errs := s.sixteenNodes(t, func(db *gorm.DB) error { return db.AutoMigrate(&NaiveUser{}, &NaiveSession{}) })
		failed := 0
		for _, err := range errs {
			if err != nil {
				failed++
			}
		}
		t.Logf("AutoMigrate alone: %d of 16 nodes failed", failed)
	})

	t.Run("R18_RotationWithoutAGuard", func(t *testing.T) {
		v := sign(ada.ID)
		won := 0
		for _, token := range []string{"one", "another"} { // both read v before
			digest := sha256.Sum256([]byte(token))
			updated := db.Model(&NaiveSession{}).Where("id = ?", v.ID).Update("token_digest", digest[:])
			must(t, updated.Error)
			won += int(updated.RowsAffected)
		}
		want(t, "rotations that think they won", won, 2)
	})

	digest := func(token string) []byte {
		sum := sha256.Sum256([]byte(token))
		return sum[:]
	}
	set := func(v NaiveSession, column string, value any) {
		t.Helper()
		must(t, db.Model(&NaiveSession{}).Where("id = ?", v.ID).Update(column, value).Error)
	}

	t.Run("R12_DigestedAnewWithoutAGuard", func(t *testing.T) {
		v := sign(ada.ID)
		set(v, "token_digest", digest("rotated"))            // by one request
		set(v, "token_digest", digest("pepper and a token")) // by another, which had found it by its token before
		want(t, "sessions of the token that was handed out", count(db.Where("id = ? AND token_digest = ?", v.ID, digest("rotated"))), 0)
		want(t, "sessions of the token that was replaced", count(db.Where("id = ? AND token_digest = ?", v.ID, digest("pepper and a token"))), 1)
	})

	t.Run("R19_WithoutRetiredTokens", func(t *testing.T) {
		v := sign(ada.ID)
		set(v, "token_digest", digest("the thief's"))
		set(v, "token_digest", digest("the thief's second"))
		want(t, "sessions of the owner's token", count(db.Where("id = ? AND token_digest = ?", v.ID, digest("a token"))), 0) // as of a guess
		want(t, "sessions that the thief keeps", count(db.Where("id = ? AND revoked_at IS NULL", v.ID)), 1)
	})

	t.Run("R48_EventBeforeTheCommit", func(t *testing.T) {
		told, before := 0, count(db)
		create := db.Callback().Create()
		must(t, create.After("gorm:after_create").Before("gorm:commit_or_rollback_transaction").Register("naive:tell", func(*gorm.DB) { told++ }))
		must(t, create.After("naive:tell").Before("gorm:commit_or_rollback_transaction").Register("naive:fail", func(db *gorm.DB) { _ = db.AddError(errRollback) }))
		wantErr(t, "create", db.Create(&NaiveSession{OwnerID: ada.ID}).Error, errRollback)
		must(t, create.Remove("naive:fail"))
		must(t, create.Remove("naive:tell"))
		want(t, "told", told, 1)
		want(t, "stored", count(db), before)
	})

	t.Run("R50_PruneWithoutALook", func(t *testing.T) {
		v := sign(ada.ID)
		set(v, "expires_at", c.Now())
		var ended []uint
		must(t, db.Model(&NaiveSession{}).Where("expires_at <= ?", c.Now()).Pluck("id", &ended).Error)
		set(v, "expires_at", c.Now().Add(time.Hour)) // by whoever makes it valid again
		must(t, db.Delete(&NaiveSession{}, ended).Error)
		want(t, "left of an active session", count(db.Where("id = ?", v.ID)), 0)
	})

	t.Run("R17_SaveAgainstRevoke", func(t *testing.T) {
		revived := 0
		for range 50 {
			v := sign(ada.ID)
			var wg sync.WaitGroup
			wg.Go(func() {
				var read NaiveSession
				if db.First(&read, v.ID).Error == nil && read.RevokedAt == nil {
					at := c.Now().Add(time.Hour)
					read.ExpiresAt = &at
					_ = db.Save(&read).Error
				}
			})
			wg.Go(func() { _ = db.Model(&NaiveSession{}).Where("id = ?", v.ID).Update("revoked_at", c.Now()).Error })
			wg.Wait()
			revived += int(count(db.Where("id = ? AND revoked_at IS NULL", v.ID)))
		}
		t.Logf("an extension by Save revived %d of 50 revoked sessions", revived)
	})
}
