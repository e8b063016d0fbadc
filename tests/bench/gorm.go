package main

import (
	"context"
	"time"

	"github.com/google/uuid"
	"gorm.io/datatypes"
	"gorm.io/gorm"
)

// Plain GORM, without the plugin, on a *gorm.DB of its own: what an application
// writes that has no library for sessions.

const gormActive = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"

func gormTake(name string, db *gorm.DB) contestant {
	return contestant{name: name, check: isRow, run: func(ctx context.Context, in input) (any, error) {
		session := new(UserSession)
		err := db.WithContext(ctx).Where("token_digest = ? AND "+gormActive, []byte(digest(in.token)), time.Now().UTC()).Take(session).Error
		return session, err
	}}
}

func gormGenerics(name string, db *gorm.DB) contestant {
	return contestant{name: name, check: isRow, run: func(ctx context.Context, in input) (any, error) {
		session, err := gorm.G[UserSession](db).Where("token_digest = ? AND "+gormActive, []byte(digest(in.token)), time.Now().UTC()).Take(ctx)
		return &session, err
	}}
}

func gormJoins(name string, db *gorm.DB) contestant {
	const active = "user_sessions.revoked_at IS NULL AND (user_sessions.expires_at IS NULL OR user_sessions.expires_at > ?)"
	return contestant{name: name, check: isRowWithOwner, run: func(ctx context.Context, in input) (any, error) {
		session := new(UserSession)
		err := db.WithContext(ctx).InnerJoins("Owner").
			Where("user_sessions.token_digest = ? AND "+active, []byte(digest(in.token)), time.Now().UTC()).Take(session).Error
		return session, err
	}}
}

// gormTwoQueries asks for the session, and then for its owner.
func gormTwoQueries(name string, db *gorm.DB) contestant {
	return contestant{name: name, check: isRowWithOwner, run: func(ctx context.Context, in input) (any, error) {
		session := new(UserSession)
		err := db.WithContext(ctx).Where("token_digest = ? AND "+gormActive, []byte(digest(in.token)), time.Now().UTC()).Take(session).Error
		if err != nil {
			return nil, err
		}
		session.Owner = new(User)
		err = db.WithContext(ctx).Take(session.Owner, session.OwnerID).Error
		return session, err
	}}
}

func gormPreload(name string, db *gorm.DB) contestant {
	return contestant{name: name, check: isRowWithOwner, run: func(ctx context.Context, in input) (any, error) {
		session := new(UserSession)
		err := db.WithContext(ctx).Preload("Owner").
			Where("token_digest = ? AND "+gormActive, []byte(digest(in.token)), time.Now().UTC()).Take(session).Error
		return session, err
	}}
}

func gormList(name string, db *gorm.DB) contestant {
	return contestant{name: name, check: isListOfOwner, run: func(ctx context.Context, in input) (any, error) {
		var list []UserSession
		err := db.WithContext(ctx).Where("owner_id = ? AND "+gormActive, in.rows.owner(in.i), time.Now().UTC()).
			Order("created_at DESC, id DESC").Find(&list).Error
		return list, err
	}}
}

// plainSession is the table as an application writes it that has no library for
// sessions. (UserSession refuses to be created without the plugin.)
type plainSession struct {
	ID              uuid.UUID
	TokenDigest     []byte
	Data            datatypes.JSONMap
	ExpiresAt       *time.Time
	IdleTimeout     time.Duration
	Deadline        *time.Time
	LastUsedAt      *time.Time
	AuthenticatedAt time.Time
	RevokedAt       *time.Time
	RevokedReason   string
	CreatedAt       time.Time
	UpdatedAt       time.Time
	OwnerID         uint
	Device          string
}

func (plainSession) TableName() string { return "user_sessions" }

func (s *store) gormCreate(name string, db *gorm.DB) contestant {
	return contestant{name: name, check: s.isStored, run: func(ctx context.Context, in input) (any, error) {
		session := newSession(in)
		err := db.WithContext(ctx).Create(&plainSession{
			session.ID, session.TokenDigest, session.Data, session.ExpiresAt, session.IdleTimeout, session.Deadline, session.LastUsedAt,
			session.AuthenticatedAt, session.RevokedAt, session.RevokedReason, session.CreatedAt, session.UpdatedAt, session.OwnerID, session.Device,
		}).Error
		return session, err
	}}
}
